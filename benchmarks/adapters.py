"""Going on with a packed model by adapters: what they gain on another domain's text, and what memory training takes.

    python benchmarks/adapters.py quality --student small --teacher bundled --data novels [--steps 100] [--rate 4e-3]
    python benchmarks/adapters.py memory --student small [--rank 8] [--tokens 64 128]
    python benchmarks/adapters.py pack --output small    # a GPT-2 of the 124M shape in 2 bits, random: for memory alone

quality: the real command twice, `abridged finetune` of the teacher at full precision and of its packed student by the
recipe lora, for the same steps on the same text, of which a folder has train.txt and validation.txt; nats a token on
the validation part before and after, and the share of the gain that the adapters reach. With --folder both are
kept, and one that is there is not made again.

memory: three steps of the recipe's training in a process of its own, at two lengths of text (of 128 tokens at most:
buffers for logits do not grow beyond). What grows with the tokens are activations; what is left, drawn on to a text of
no tokens, is what packed base, adapters, their gradients and averages, and slices of matrices take: resident memory
above that of the same process with its libraries warm. Beside it the bytes of the base's file. MB = 2^20 bytes.

Rows are in benchmarks/results/adapters.jsonl.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import append

from abridged.core.record import RECORD

#: Freed memory goes back to the system, so that what a process holds is what it uses.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def nats(measured: dict[str, Any]) -> float:
    return math.log(measured["perplexity"])


def finetuned(model: str, options: argparse.Namespace, output: Path, *more: str) -> dict[str, float]:
    """Nats a token on the validation part before and after the real command."""
    key = "stages.0." if "--recipe" in more else ""
    settings = {"steps": options.steps, "context": options.context, "batch_size": options.batch_size, "keep": "last"}
    settings |= {"evaluate_every": options.steps, "save_every": options.steps, "dropout": 0, "compile": "no"}
    command = [sys.executable, "-m", "abridged", "finetune", model, "--data", options.data, "--output", str(output)]
    command += [word for name, value in settings.items() for word in ("--set", f"{key}{name}={value}")]
    if not output.exists():
        subprocess.run([*command, *more], stdout=subprocess.DEVNULL, check=True)
    found = json.loads((output / RECORD).read_text())["validation"]
    return {"before": nats(found["before"]), "after": nats(found["after"])}


def quality(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        place = options.folder or Path(temporary)
        rate = ("--set", f"learning_rate={options.teacher_rate}")
        teacher = finetuned(options.teacher, options, place / "teacher", *rate)
        rate = ("--recipe", "lora", "--set", f"stages.0.learning_rates.adapter={options.rate}")
        rate += ("--set", f"stages.0.methods.lora.rank={options.rank}")
        student = finetuned(options.student, options, place / "mine", *rate)
        size = json.loads((place / "mine" / RECORD).read_text())["adapter"]
    gained = [one["before"] - one["after"] for one in (teacher, student)]
    share = gained[1] / gained[0]
    found = {"teacher_nats": teacher, "student_nats": student, "share": share}
    found |= {"adapter_bytes": size["bytes"], "within": gained[1] >= 2 / 3 * gained[0]}
    print(f"teacher gains {gained[0]:.3f} nats, its packed student by adapters {gained[1]:.3f}: {share:.0%}")
    names = ("steps", "context", "batch_size", "rate", "teacher_rate", "rank")
    settings = {name: getattr(options, name) for name in names}
    about = {"model": Path(options.teacher).name, "task": Path(options.data).name, "settings": settings}
    made = json.loads((Path(options.student) / RECORD).read_text()).get("recipe", {})
    append("adapters quality", found, name=made.get("name", Path(options.student).name), recipe="lora", **about)


def held(options: argparse.Namespace, tokens: int) -> dict[str, int]:
    """What a process of its own held at most in three steps on so many tokens, above what its libraries take."""
    command = [sys.executable, __file__, "step", "--student", options.student, "--rank", str(options.rank)]
    done = subprocess.run(
        [*command, "--tokens", str(tokens)], stdout=subprocess.PIPE, check=True, env={**os.environ, **ALLOCATOR}
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def step(options: argparse.Namespace) -> None:
    """Print what `held` asks for: run in a process of its own."""
    import torch

    from abridged import families
    from abridged.checkpoint.load import load
    from abridged.checkpoint.pack import pack_model
    from abridged.core.hardware import give_back_memory, peak_memory, resident_memory
    from abridged.data.batch import Batch
    from abridged.families.kinds import class_named
    from abridged.families.small import small_model
    from abridged.families.standin import inputs_of
    from abridged.methods.lora import Lora
    from abridged.methods.quantization.method import Quantize
    from abridged.models.load import load_config
    from abridged.objectives.base import outputs_of
    from abridged.objectives.chunked import label_cross_entropy

    torch.set_num_threads(1)

    def steps(model: Any, tokens: int, count: int) -> int:
        attached = Lora(rank=options.rank).build(model, families.view(model), lambda model: None)
        adapters = attached.parameter_groups()["adapter"]
        model.requires_grad_(False)
        for parameter in adapters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(adapters, lr=1e-4, fused=True)
        ids = torch.randint(model.config.get_text_config().vocab_size, (1, tokens))
        batch = Batch.of(ids, ids.roll(-1, 1), torch.zeros(1, dtype=torch.int64))
        for _ in range(count):
            made = outputs_of(model.train(), batch)
            head = made.language_head
            label_cross_entropy(head.inputs(made.last_hidden), *head.weights(), batch.labels, cap=head.cap).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sum(parameter.numel() for parameter in adapters)

    config = load_config(options.student)
    small = small_model(class_named(config), config)  # of the type, which warms up what libraries make once
    Quantize().build(small, families.view(small), lambda model, tokens=None: model(**inputs_of(model))).finish()
    steps(pack_model(small), 8, 1)
    del small
    gc.collect()
    give_back_memory()
    before = resident_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    count = steps(load(options.student), options.tokens[0], 3)
    print(json.dumps({"peak": peak_memory() - before, "adapters": count}))


def memory(options: argparse.Namespace) -> None:
    few, many = sorted(options.tokens)
    peaks = {tokens: held(options, tokens) for tokens in (few, many)}
    each = (peaks[many]["peak"] - peaks[few]["peak"]) / (many - few)
    fixed, file = peaks[few]["peak"] - each * few, (Path(options.student) / "model.safetensors").stat().st_size
    adapters = 16 * peaks[few]["adapters"]  # FP32: weight, gradient, two averages
    found = {"file_bytes": file, "peak_bytes": {str(n): one["peak"] for n, one in peaks.items()}}
    found |= {"bytes_a_token": round(each), "fixed_bytes": round(fixed), "adapter_state_bytes": adapters}
    found |= {"times_file": fixed / file, "within": fixed <= 2 * file}
    print(
        f"file {file / 2**20:.1f} MB, adapters with gradients and averages {adapters / 2**20:.1f} MB; held without "
        f"activations {fixed / 2**20:.1f} MB ({fixed / file:.2f} x the file), activations {each / 2**20:.2f} MB a token"
    )
    settings = {"rank": options.rank, "tokens": [few, many]}
    append("adapters memory", found, name=Path(options.student).name, recipe="lora", settings=settings)


def pack(options: argparse.Namespace) -> None:
    """Write a GPT-2 of the 124M shape, random, its layers and embedding in 2 bits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from abridged import families
    from abridged.checkpoint.pack import pack_model
    from abridged.checkpoint.save import save_checkpoint
    from abridged.methods.quantization.method import Quantize
    from abridged.models.load import load_tokenizer

    model = GPT2LMHeadModel(GPT2Config()).eval()
    two = {"bits": 2, "quantizer": "minmax", "granularity": "per_channel"}
    method = Quantize.model_validate(
        {
            "weights": two,
            "embeddings": two,
            "activations": {"bits": 8, "quantizer": "dynamic"},
            "unquantized": "float16",
        }
    )
    method.build(model, families.view(model), lambda model, tokens=None: None).finish()
    save_checkpoint(pack_model(model, copied=False), options.output, load_tokenizer("bundled"), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = {"quality": quality, "memory": memory, "step": step, "pack": pack}
    parser.add_argument("verb", choices=verbs)
    parser.add_argument("--student", help="a packed directory")
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--data", help="a text of another domain")
    parser.add_argument("--output", help="of pack")
    parser.add_argument("--folder", type=Path, help="where quality keeps what it makes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=4e-3, help="of adapters")
    parser.add_argument("--teacher-rate", type=float, default=5e-4)
    for name, number in (("steps", 100), ("context", 128), ("batch-size", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    verbs[options.verb](options)


if __name__ == "__main__":
    main()

"""What compressing block by block takes: a random bf16 LLaMA of a true shape on disk, compressed, loaded, and run.

    python benchmarks/blocks.py make FOLDER [--shape llama-2-7b|rehearsal] [--layers N]    # 13.5 GB, or 60 MB
    python benchmarks/blocks.py run FOLDER [--set KEY=VALUE …] [--keep] [--kill-in BLOCK]  # 2 bits, 4,096 tokens
    python benchmarks/blocks.py load FOLDER [--shape …] [--layers N]                       # what `run` would have made
    python benchmarks/blocks.py compress MODEL DATA RECIPE [--set KEY=VALUE …]  # any model by any recipe
        [--window 512 [--part test|valid] [--limit TOKENS] [--output FOLDER]]

`make` writes the weights a tensor at a time. `run` and `compress` start the real command in a process of its own and
say its wall time, the most memory that it held (VmHWM, mapped pages included) and the bytes of the file; `run` then
loads the result in another process and generates from it. `load` does that alone, with a packed model whose codes are
random, which it writes where it is not there. Random weights measure memory and time, not quality. Each is a row of
benchmarks/results/blocks.jsonl.

With `--window` the run itself measures a page of text only, and what it has written is measured afterwards, like the
teacher, on windows of so many tokens of a part of DATA (a folder as WikiText-2's): on valid to choose, on all of test
once. There matrix products are in bf16 where that is fast; the activations of packed models stay in their own bits.
`--output` keeps what was written; where it is there already, as after a choice, it is measured alone.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from results import Row, append, latest, read
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from abridged import families
from abridged.checkpoint.pack import PackedPart, assemble, specs_of
from abridged.checkpoint.save import save_checkpoint
from abridged.core.hardware import fast_bf16
from abridged.core.names import gguf_file
from abridged.data.text import load_text
from abridged.evaluation.perplexity import perplexity
from abridged.exporters.dense import dense_model, export_dense
from abridged.families.standin import skeleton
from abridged.models.load import load_any, load_tokenizer
from abridged.recipe import Recipe
from abridged.runtime.activations import DynamicActivation, StaticActivation

SHAPES = {
    "llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32_000, "max_position_embeddings": 4096,
    },
    "rehearsal": {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
        "vocab_size": 32_000, "max_position_embeddings": 4096,
    },
}  # fmt: skip
#: Two bits a weight and GPTQ on 4,096 tokens; embedding and head in 4. Inputs in 8 bits, for which there are kernels.
RECIPE = "ptq-2"
CHANGES = (
    "stages.0.runner=blocks", "stages.0.blocks.tokens=4096", "stages.0.context=512", "stages.0.evaluate_tokens=512",
    "stages.0.methods.quantize.activations.bits=8", "stages.0.methods.quantize.activations.quantizer=dynamic",
)  # fmt: skip
#: Characters to look at and to be measured on: a window or two.
TRAIN, TEST = 60_000, 2_000
GENERATED = 64
#: Seconds into a block of a large model.
KILLED_AFTER = 60


def config_of(shape: str, layers: int | None) -> LlamaConfig:
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    return LlamaConfig(**sizes, dtype="bfloat16", architectures=["LlamaForCausalLM"])


def make(folder: Path, shape: str, layers: int | None) -> None:
    """Write the model, a shard for each block, and a text."""
    folder.mkdir(parents=True)
    config = config_of(shape, layers)
    config.save_pretrained(folder)
    load_tokenizer("bundled").save_pretrained(folder)
    model, draw, where = skeleton(LlamaForCausalLM, config), torch.Generator().manual_seed(0), {}
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.state_dict().items():
        parts = name.split(".")
        shards.setdefault(f"model-{parts[2] if parts[1] == 'layers' else 'rest'}", {})[name] = parameter.shape
    for file, names in shards.items():
        tensors = {}
        for name, size in names.items():
            drawn = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=draw).mul_(0.02)
            tensors[name], where[name] = drawn.to(torch.bfloat16), f"{file}.safetensors"
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    text = load_text("wikitext-2")
    (folder / "data").mkdir()
    for part, count in (("train", TRAIN), ("valid", TEST), ("test", TEST)):
        (folder / "data" / f"wiki.{part}.tokens").write_text(text.train[:count])


def compress(model: Path, data: str, recipe: str, output: Path, changes: list[str]) -> dict[str, Any]:
    """What the command took."""
    command = [sys.executable, "-m", "abridged", "compress", str(model), "--recipe", recipe, "--data", data]
    command += ["--output", str(output), "--overwrite", "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *(word for change in changes for word in ("--set", change))], stdout=subprocess.PIPE, check=True
    )
    record = json.loads(done.stdout)
    return {
        "seconds": time.perf_counter() - began,
        "parts": record["seconds"],
        "peak_bytes": record["peak_memory_bytes"],
        "file_bytes": sum(file["bytes"] for file in record["files"].values()),
        "measured": record["metrics"],
        "loss_percent": record["loss_percent"],
    }


def one_page(data: Path, place: Path) -> Path:
    """The data with a page to be measured on: all of the training text, little of the others."""
    place.mkdir()
    for part, count in (("train", None), ("valid", TEST), ("test", TEST)):
        (place / f"wiki.{part}.tokens").write_text(next(data.glob(f"*{part}*")).read_text(encoding="utf-8")[:count])
    return place


def measured(model: Path, data: Path, window: int, part: str, limit: int | None) -> dict[str, Any]:
    """A model's perplexity on windows of a text."""
    found, began = load_any(model), time.perf_counter()
    tokenizer = load_tokenizer(model, found)
    quantised = any(isinstance(module, DynamicActivation | StaticActivation) for module in found.modules())
    found = found if quantised else dense_model(found, torch.float32).eval()
    for layer in found.modules() if fast_bf16() else ():  # as autocast would, but once and not in every window
        if isinstance(layer, torch.nn.Linear):
            layer.weight = torch.nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        text = next(data.glob(f"*{part}*")).read_text(encoding="utf-8")
        metrics = perplexity(found, tokenizer, text, context=window, limit=limit)
    seconds = time.perf_counter() - began
    return {**json.loads(json.dumps(metrics)), "bf16": fast_bf16(), "part": part, "seconds": seconds}


#: What `compress` says of a run, whatever it is measured on.
OF_THE_RUN = ("seconds", "parts", "peak_bytes", "file_bytes", "measured")


def compress_and_measure(options: argparse.Namespace, about: Row) -> dict[str, Any]:
    """What the command took, and what is lost on the windows. A teacher that was measured before is not again."""
    with tempfile.TemporaryDirectory() as folder:
        place, model, data = Path(folder), Path(options.model), Path(options.data)
        if gguf_file(model) is not None:  # the runner blocks streams safetensors
            export_dense(model, place / model.name, "float32")
            model = place / model.name
        if options.window is None:
            return compress(model, options.data, options.recipe, place / "student", options.changes)
        student_at = options.output or place / "student"
        if student_at.exists():
            before = latest("blocks compress", **about)
            row = {key: before[key] for key in OF_THE_RUN}
        else:
            page = str(one_page(data, place / "data"))
            row = compress(model, page, options.recipe, student_at, options.changes)
        how = windows_of(options)
        known = read("blocks compress", model=about["model"], **how)
        teacher = known[-1]["teacher"] if known else measured(model, data, **how)
        student = measured(student_at, data, **how)
    loss = 100 * (student["perplexity"] / teacher["perplexity"] - 1)
    return {**row, "teacher": teacher, "student": student, "loss_percent": {"perplexity": loss}}


def windows_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of what is measured on windows."""
    return {key: getattr(options, key) for key in ("window", "part", "limit")}


def pack_random(shape: str, layers: int | None, output: Path) -> None:
    """Write what `run` makes of a shape, but for the codes, which are drawn at random."""
    recipe = Recipe.load(RECIPE, [*CHANGES])
    model = skeleton(LlamaForCausalLM, config_of(shape, layers))
    (method,) = recipe.stages[0].methods.values()
    with torch.device("meta"):
        method.untrained().build(model, families.view(model), lambda model, tokens=None: None)
    specs, draw, tensors = specs_of(model), torch.Generator().manual_seed(0), {}
    for path, spec in specs.items():
        storage = spec.storage
        tensors[f"{path}.codes"] = torch.randint(256, (storage.packed_bytes,), generator=draw, dtype=torch.uint8)
        tensors[f"{path}.zeros"] = torch.randint(256, (storage.zero_bytes,), generator=draw, dtype=torch.uint8)
        tensors[f"{path}.scales"] = torch.full((storage.num_scales,), 0.01).half().float()
    norms = {name: torch.ones(one.shape) for name, one in model.named_parameters() if "norm" in name}
    student = assemble(skeleton(LlamaForCausalLM, config_of(shape, layers)), [PackedPart(specs, tensors | norms)])
    save_checkpoint(student, output, load_tokenizer("bundled"), {"recipe": recipe.model_dump(mode="json")})


_RUN = """
import json, os, sys, time
import torch
import abridged.checkpoint.hf, abridged.checkpoint.skeleton, abridged.runtime.decoding.steps
from abridged.checkpoint.load import load
from abridged.core.hardware import resident_memory
from transformers.models.llama import modeling_llama
before, began, worked = resident_memory(), time.perf_counter(), time.process_time()
model = load(sys.argv[1])
loaded = time.perf_counter() - began
count, told = int(sys.argv[2]), {"load_seconds": loaded, "load_processor_seconds": time.process_time() - worked}
if count:
    worked, began = time.process_time(), time.perf_counter()
    model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    told["tokens_per_second"] = count / (time.perf_counter() - began)
    told["tokens_per_processor_second"] = count / (time.process_time() - worked)
    told["resident_bytes"] = resident_memory() - before
    source, best = torch.ones(1 << 28, dtype=torch.uint8), 0.0
    target = torch.empty_like(source)
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        best = max(best, len(source) / (time.perf_counter() - began))
    told["copied_bytes_per_second"], told["threads"] = best, torch.get_num_threads()
print(json.dumps(told))
"""


def load_and_generate(output: Path, count: int, cold: bool = False) -> dict[str, Any]:
    """In a process of its own. cold: with nothing of the files in the system's page cache."""
    for path in output.glob("*.safetensors") if cold else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    done = subprocess.run([sys.executable, "-c", _RUN, str(output), str(count)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def use(output: Path) -> dict[str, Any]:
    """What loading a packed model takes, and generating from it."""
    size = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    cold, warm = load_and_generate(output, 0, cold=True), load_and_generate(output, GENERATED)
    most = warm["copied_bytes_per_second"] / size
    shares = {"resident_share": warm["resident_bytes"] / size, "speed_share": warm["tokens_per_second"] / most}
    return {"file_bytes": size, "cold": cold, "warm": warm, **shares}


def processor_seconds(process: int) -> float:
    """What a process has had of the processor so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(command: list[str], parts: Path, kill_in: int | None = None, stop_after: float = math.inf) -> dict[str, Any]:
    """Run a command: its time, most memory, and when it had written each block, by the clock and in processor seconds.

    kill_in: SIGKILL it in that block; stop_after: after so many seconds.
    """
    began, written, known = time.perf_counter(), [], len(list(parts.glob("block-*.safetensors")))
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, stdout=answer)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            now = time.perf_counter() - began
            if len(list(parts.glob("block-*.safetensors"))) > known + len(written):
                written.append([now, processor_seconds(process.pid)])
            into = now - written[-1][0] if written else 0.0
            in_it = written and known + len(written) == kill_in and into > min(KILLED_AFTER, written[-1][0] / 8)
            if in_it or now > stop_after:
                process.kill()
            time.sleep(0.2)
        answer.seek(0)
        text = answer.read()
    _, status, usage = ended
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"the command ended with {code}")
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
        "blocks_before": known,
        "blocks_written_at": written,
        "record": json.loads(text) if code == 0 else None,
    }


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compress the model of a folder, load the result and generate from it."""
    output = folder / "compressed"
    command = [sys.executable, "-m", "abridged", "compress", str(folder), "--recipe", RECIPE]
    command += ["--data", str(folder / "data"), "--output", str(output), "--json"]
    command += [word for change in (*CHANGES, *options.changes) for word in ("--set", change)]
    parts, resumed = folder / "compressed.partial" / "parts", [*command, "--resume"]
    first = resumed if options.resume else command
    attempts = [watch(first, parts, options.kill_in, options.stop_after)]
    if attempts[0]["record"] is None and attempts[0]["seconds"] < options.stop_after:
        attempts.append(watch(resumed, parts, stop_after=options.stop_after - attempts[0]["seconds"]))
    record = attempts[-1].pop("record")
    between = [
        [late - early for early, late in zip(one, other, strict=True)]
        for attempt in attempts
        for one, other in itertools.pairwise(attempt["blocks_written_at"])
    ]
    row = {
        "attempts": attempts,
        "ended": record is not None,
        "blocks": attempts[-1]["blocks_before"] + len(attempts[-1]["blocks_written_at"]),
        "blocks_of": json.loads((folder / "config.json").read_text())["num_hidden_layers"],
        "seconds_a_block": statistics.median(one[0] for one in between) if between else None,
        "processor_seconds_a_block": statistics.median(one[1] for one in between) if between else None,
        "peak_bytes": max(one["peak_bytes"] for one in attempts),
    }
    if record is not None:
        row |= {"measured": record["metrics"], **use(output)}
        if not options.keep:
            shutil.rmtree(output)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("folder", type=Path)
    loading = verbs.add_parser("load")
    loading.add_argument("folder", type=Path)
    for verb in (making, loading):
        verb.add_argument("--shape", choices=SHAPES, default="rehearsal")
        verb.add_argument("--layers", type=int, help="instead of the shape's own number")
    running = verbs.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--keep", action="store_true")
    running.add_argument("--kill-in", type=int, help="SIGKILL the run once, in the block of that number, then --resume")
    running.add_argument("--stop-after", type=float, default=math.inf, help="seconds; how far it came is written down")
    running.add_argument("--resume", action="store_true", help="go on with what was stopped")
    compressing = verbs.add_parser("compress")
    for name in ("model", "data", "recipe"):
        compressing.add_argument(name)
    compressing.add_argument("--window", type=int)
    compressing.add_argument("--part", choices=("test", "valid"), default="test")
    compressing.add_argument("--limit", type=int)
    compressing.add_argument("--output", type=Path)
    for verb in (running, compressing):
        verb.add_argument("--set", dest="changes", action="append", default=[])
    options = parser.parse_args()
    if options.verb == "make":
        make(options.folder, options.shape, options.layers)
        return
    if options.verb == "load":
        if not options.folder.exists():
            pack_random(options.shape, options.layers, options.folder)
        layers = config_of(options.shape, options.layers).num_hidden_layers
        about: Row = {"model": options.shape, "settings": {"layers": layers}}
        row = use(options.folder)
    elif options.verb == "run":
        about = {"model": options.folder.name, "recipe": RECIPE, "overrides": options.changes}
        row = run(options.folder, options)
    else:
        about = {"model": Path(options.model).name, "recipe": options.recipe, "overrides": options.changes}
        row = compress_and_measure(options, about)
        about["settings"] = None if options.window is None else windows_of(options)
    append(f"blocks {options.verb}", row, **about)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()

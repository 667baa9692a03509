"""What compressing block by block takes: a random bf16 LLaMA of a true shape on disk, compressed, loaded, and run.

    python benchmarks/blocks.py make FOLDER [--shape llama-2-7b|rehearsal] [--layers N]    # 13.5 GB, or 60 MB
    python benchmarks/blocks.py run FOLDER [--set KEY=VALUE …] [--keep] [--kill-in BLOCK]  # 2 bits, 4,096 tokens
    python benchmarks/blocks.py compress MODEL DATA RECIPE [--set KEY=VALUE …]  # any model by any recipe
        [--window 512 [--part test|valid] [--limit TOKENS] [--output FOLDER]]

`make` writes the weights a tensor at a time. `run` and `compress` start the real command in a process of its own and
say its wall time, the most memory that it held (VmHWM, mapped pages included) and the bytes of the file; `run` then
loads the result in another process and generates from it. Random weights measure memory and time, not quality. The
JSON is written to benchmarks/results/blocks-NAME.json.

With `--window` the run itself measures a page of text only, and what it has written is measured afterwards, like the
teacher, on windows of so many tokens of a part of DATA (a folder as WikiText-2's): on valid to choose, on all of test
once. There matrix products are in bf16 where that is fast; the activations of packed models stay in their own bits.
`--output` keeps what was written; where it is there already, as after a choice, it is measured alone.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from abridged.core.atomic import write_atomically
from abridged.core.hardware import fast_bf16
from abridged.core.names import gguf_file
from abridged.core.record import environment
from abridged.data.text import load_text
from abridged.evaluation.perplexity import perplexity
from abridged.exporters.dense import dense_model, export_dense
from abridged.families.standin import skeleton
from abridged.models.load import load_any, load_tokenizer
from abridged.runtime.activations import DynamicActivation, StaticActivation

RESULTS = Path(__file__).parent / "results"
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


def make(folder: Path, shape: str, layers: int | None) -> None:
    """Write the model, a shard for each block, and a text."""
    folder.mkdir(parents=True)
    sizes = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = LlamaConfig(**sizes, dtype="bfloat16", architectures=["LlamaForCausalLM"])
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
        "metrics": record["metrics"],
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
    with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):
        text = next(data.glob(f"*{part}*")).read_text(encoding="utf-8")
        metrics = perplexity(found, tokenizer, text, context=window, limit=limit)
    seconds = time.perf_counter() - began
    return {**json.loads(json.dumps(metrics)), "bf16": fast_bf16(), "part": part, "seconds": seconds}


def compress_and_measure(options: argparse.Namespace) -> dict[str, Any]:
    """What the command took, and what is lost on the windows. A teacher that was measured before is not again."""
    with tempfile.TemporaryDirectory() as folder:
        place, model, data = Path(folder), Path(options.model), Path(options.data)
        if gguf_file(model) is not None:  # the runner blocks streams safetensors
            export_dense(model, place / model.name, "float32")
            model = place / model.name
        if options.window is None:
            return compress(model, options.data, options.recipe, place / "student", options.changes)
        student_at, named = options.output or place / "student", RESULTS / f"blocks-{options.name}.json"
        if student_at.exists():
            row = json.loads(named.read_text())
        else:
            page = str(one_page(data, place / "data"))
            row = compress(model, page, options.recipe, student_at, options.changes)
        how = (data, options.window, options.part, options.limit)
        key = [model.name, options.window, options.part, options.limit]
        known = [json.loads(path.read_text()) for path in RESULTS.glob("blocks-*.json")]
        teacher = next((one["teacher"] for one in known if one.get("measured") == key), None) or measured(model, *how)
        student = measured(student_at, *how)
    loss = 100 * (student["perplexity"] / teacher["perplexity"] - 1)
    return {**row, "measured": key, "teacher": teacher, "student": student, "loss_percent": {"perplexity": loss}}


_RUN = """
import json, os, sys, time
import torch
from abridged.checkpoint.load import load
from abridged.core.hardware import resident_memory
from transformers.models.llama import modeling_llama
before, began = resident_memory(), time.perf_counter()
model = load(sys.argv[1])
loaded = time.perf_counter() - began
count, told = int(sys.argv[2]), {"load_seconds": loaded}
if count:
    began = time.perf_counter()
    model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    told["tokens_per_second"] = count / (time.perf_counter() - began)
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


def watch(command: list[str], parts: Path, kill_in: int | None = None) -> dict[str, Any]:
    """Run a command: its time, most memory, and when it had written each block. kill_in: SIGKILL it in that block."""
    began, written = time.perf_counter(), {}
    with tempfile.TemporaryFile() as answer:
        process = subprocess.Popen(command, stdout=answer)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            now = time.perf_counter() - began
            for path in parts.glob("block-*.safetensors"):
                written.setdefault(int(path.stem.partition("-")[2]), now)
            blocks = sorted(written.values())
            if kill_in is not None and len(blocks) == kill_in and now > blocks[-1] + min(KILLED_AFTER, blocks[-1] / 8):
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
        "block_written_at": [written[number] for number in sorted(written)],
        "record": json.loads(text) if code == 0 else None,
    }


def run(folder: Path, changes: list[str], keep: bool, kill_in: int | None) -> dict[str, Any]:
    """Compress the model of a folder, load the result and generate from it."""
    output = folder / "compressed"
    command = [sys.executable, "-m", "abridged", "compress", str(folder), "--recipe", RECIPE]
    command += ["--data", str(folder / "data"), "--output", str(output), "--json"]
    command += [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    parts = folder / "compressed.partial" / "parts"
    attempts = [watch(command, parts, kill_in)] if kill_in is not None else []
    attempts.append(watch([*command, "--resume"] if attempts else command, parts))
    record = attempts[-1].pop("record")
    row = {
        "recipe": RECIPE,
        "attempts": attempts,
        "seconds": sum(one["seconds"] for one in attempts),
        "peak_bytes": max(one["peak_bytes"] for one in attempts),
        "file_bytes": sum(file["bytes"] for file in record["files"].values()),
        "metrics": record["metrics"],
        "cold": load_and_generate(output, 0, cold=True),
        "warm": load_and_generate(output, GENERATED),
    }
    row["resident_share"] = row["warm"]["resident_bytes"] / row["file_bytes"]
    most = row["warm"]["copied_bytes_per_second"] / row["file_bytes"]
    row["speed_share"] = row["warm"]["tokens_per_second"] / most
    if not keep:
        shutil.rmtree(output)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--shape", choices=SHAPES, default="rehearsal")
    making.add_argument("--layers", type=int, help="instead of the shape's own number")
    running = verbs.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--keep", action="store_true")
    running.add_argument("--kill-in", type=int, help="SIGKILL the run once, in the block of that number, then --resume")
    compressing = verbs.add_parser("compress")
    for name in ("model", "data", "recipe"):
        compressing.add_argument(name)
    compressing.add_argument("--window", type=int)
    compressing.add_argument("--part", choices=("test", "valid"), default="test")
    compressing.add_argument("--limit", type=int)
    compressing.add_argument("--output", type=Path)
    for verb in (running, compressing):
        verb.add_argument("--set", dest="changes", action="append", default=[])
        verb.add_argument("--name", default="rehearsal")
    options = parser.parse_args()
    if options.verb == "make":
        make(options.folder, options.shape, options.layers)
        return
    if options.verb == "run":
        row = run(options.folder, options.changes, options.keep, options.kill_in)
    else:
        row = compress_and_measure(options) | {"recipe": options.recipe}
    row |= {"name": options.name, "changes": options.changes, "environment": environment()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / f"blocks-{options.name}.json", json.dumps(row, indent=1) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()

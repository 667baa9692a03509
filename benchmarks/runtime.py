"""Speed and memory of packed models on this CPU, side by side with torch and llama.cpp, in one run.

    python benchmarks/runtime.py [--threads 2] [--prompt 512] [--new 64] [--rounds 5] [--quick]

A GPT-2 of the true 124M shape with random weights, `best-ternary-2-2-8` without its training; all contestants have the
same weights, read the same prompt (logits of the last position only) and write tokens one at a time. llama.cpp takes
part where llama-cpp-python is installed. A row of benchmarks/results/runtime.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import append, quick_settings, speed_options
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.evaluation.generation import generate
from abridged.evaluation.speed import decode_seconds, in_turns, memory, prompt_seconds
from abridged.exporters import export
from abridged.exporters.dense import dense_model
from abridged.models.load import load_tokenizer
from abridged.recipe import Recipe
from abridged.runtime.activations import Rounding
from abridged.runtime.kernels import PATHS, Held, kernels
from abridged.runtime.weight import PackedWeight
from abridged.storage.matrix import Storage
from abridged.storage.packing import pack

RECIPE = "best-ternary-2-2-8"
#: A start that takes no search: only the time is measured here.
QUICK = [
    "stages.*.methods.quantize.weights.initialization=own",
    "stages.*.methods.quantize.embeddings.initialization=own",
]
LENGTHS = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (256, 512, 1024, 2048, 4096)


def gpt2(positions: int = 1024) -> Any:
    """GPT-2 124M with random weights."""
    return GPT2LMHeadModel(GPT2Config(n_positions=positions, bos_token_id=0, eos_token_id=0))


def build(folder: Path, new: Callable[[], Any] = gpt2, recipe: str = RECIPE) -> Path:
    """What `new` makes, packed as a recipe says without its training."""
    torch.manual_seed(0)
    model = new().eval()
    for method in Recipe.load(recipe, QUICK).stages[-1].methods.values():
        attached = method.build(model, families.view(model), lambda model: model(torch.zeros(1, 8, dtype=torch.long)))
        attached.finish()
    record = {"recipe": {"name": recipe}, "teacher": "random weights", "seed": 0}
    save_checkpoint(model, folder, load_tokenizer("bundled"), record)
    return folder


def int8_model(dense: Any) -> Any:
    """torch's dynamic int8, which knows linear layers: GPT-2's Conv1D become such first."""
    model = dense_model_copy(dense)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape)
                linear.weight, linear.bias = nn.Parameter(child.weight.t().contiguous()), child.bias
                setattr(module, name, linear)
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def dense_model_copy(dense: Any) -> Any:
    copy = GPT2LMHeadModel(dense.config).eval()
    copy.load_state_dict(dense.state_dict())
    copy.lm_head.weight = nn.Parameter(dense.lm_head.weight.detach().clone())
    return copy


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.model = Llama(
            str(path), n_ctx=1024, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def prompt(self, ids: list[int]) -> float:
        self.model.reset()
        begun = time.perf_counter()
        self.model.eval(ids)
        return time.perf_counter() - begun

    def decode(self, ids: list[int], tokens: int) -> float:
        self.prompt(ids)
        begun = time.perf_counter()
        for i in range(tokens):
            self.model.eval([ids[i]])
        return (time.perf_counter() - begun) / tokens


def written(model: Any, tokenizer: Any, prompt: str, tokens: int) -> float:
    """Seconds for each token of `abridged generate`."""

    def seconds(count: int) -> float:
        pieces = generate(model, tokenizer, prompt, max_new_tokens=count, temperature=0)
        for _ in pieces:
            pass
        return pieces.seconds / pieces.tokens * count

    return max(seconds(tokens + 1) - seconds(1), 1e-9) / tokens


def best(work: Callable[[], Any], count: int, before: Callable[[], Any] = lambda: None) -> float:
    seconds = []
    for _ in range(count):
        before()
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def ternary(rows: int, columns: int, scales: int) -> PackedWeight:
    """A random packed matrix."""
    codes = pack(torch.randint(-1, 2, (rows, columns)), "ternary", "bits")
    return PackedWeight(codes, torch.rand(scales), Storage(rows, columns, "ternary", "bits", scales))


def bandwidth() -> dict[str, float]:
    """The matrix-vector kernel on the largest matrix of GPT-2, out of a cold cache, against copying (bytes copied)."""
    compiled = kernels()
    if compiled is None:
        return {}
    source = torch.ones(64 << 20, dtype=torch.uint8)
    target, flush = torch.empty_like(source), torch.empty(600 << 20, dtype=torch.uint8)
    rows, columns, x = 50_257, 768, torch.randn(1, 768)
    result = {}
    for name, count in (("row", rows), ("group of 256", 3 * rows)):
        weight = ternary(rows, columns, count)
        work = compiled.prepared_linear(Held.of(weight), None, Rounding(8))
        result[f"scale a {name}"] = weight.codes.numel() / best(lambda w=work: w(x), 9, lambda: flush.fill_(1)) / 1e9
    result["copy"] = source.numel() / best(lambda: target.copy_(source), 9, lambda: flush.fill_(1)) / 1e9
    return result


def forced(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Each path that this processor has, in a process of its own."""
    compiled = kernels()
    rows = {}
    for path in (*(compiled.available if compiled else ()), "reference"):
        command = [sys.executable, __file__, "--one", str(folder), "--threads", str(options.threads)]
        command += ["--prompt", str(options.prompt), "--new", str(options.new)]
        done = subprocess.run(
            command, env={**os.environ, "ABRIDGED_KERNELS": path}, capture_output=True, text=True, check=True
        )
        rows[path] = json.loads(done.stdout.splitlines()[-1])
    return rows


def one(options: argparse.Namespace) -> None:
    model, ids = load(options.one), prompt_ids(options.prompt)
    prompt_seconds(model, ids)
    row = {
        "prompt_tokens_per_second": options.prompt / statistics.median(prompt_seconds(model, ids) for _ in range(3)),
        "decode_tokens_per_second": 1 / statistics.median(decode_seconds(model, ids, options.new) for _ in range(3)),
    }
    print(json.dumps(row))


def prompt_ids(length: int) -> torch.Tensor:
    return torch.randint(4096, (1, length), generator=torch.Generator().manual_seed(0))


def growth(folder: Path) -> dict[str, Any]:
    """Seconds of a prompt by its length for the whole model, and of one square matrix by its width (64 tokens)."""
    packed = load(build(folder, lambda: gpt2(max(LENGTHS))))
    models = {"packed": packed, "torch FP32": dense_model(packed, torch.float32)}
    lengths = {
        name: [best(lambda m=m, n=n: prompt_seconds(m, prompt_ids(n)), 2) for n in LENGTHS]
        for name, m in models.items()
    }
    widths: dict[str, list[float]] = {"packed": [], "torch FP32": []}
    compiled = kernels()
    for width in WIDTHS:
        x, weight = torch.randn(64, width), torch.randn(width, width)
        if compiled is not None:
            packed_weight = ternary(width, width, width)
            work = compiled.prepared_linear(Held.of(packed_weight), None, Rounding(8))
            widths["packed"].append(best(lambda w=work, x=x: w(x), 5))
        widths["torch FP32"].append(best(lambda x=x, w=weight: nn.functional.linear(x, w), 5))
    return {"lengths": list(LENGTHS), "by_length": lengths, "widths": list(WIDTHS), "by_width": widths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = speed_options(parser, new=16, rounds=1)
    torch.set_num_threads(options.threads)
    if options.one:
        return one(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(options, folder)


def measure(options: argparse.Namespace, folder: Path) -> None:
    where, ids = build(folder / "packed"), prompt_ids(options.prompt)
    packed, tokenizer = load(where), load_tokenizer(where)
    dense = dense_model(packed, torch.float32)
    models = {"packed": packed, "packed, loaded in bf16": load(where).to(torch.bfloat16), "torch FP32": dense}
    if not options.quick:
        models |= {"torch bf16": dense_model(packed, torch.bfloat16), "torch int8, dynamic": int8_model(dense)}
    prompts = {name: (lambda m=m: prompt_seconds(m, ids)) for name, m in models.items()}
    decodes = {name: (lambda m=m: decode_seconds(m, ids, options.new)) for name, m in models.items()}
    text = tokenizer.decode(ids[0])
    for name in ("packed", "packed, loaded in bf16"):
        decodes[f"{name}, abridged generate"] = lambda m=models[name]: written(m, tokenizer, text, options.new)
    try:
        import llama_cpp

        engine = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        files = {} if options.quick else {"llama.cpp F32": {"dtype": "float32"}}
        files["llama.cpp TQ2_0"] = {}
        for number, (name, chosen) in enumerate(files.items()):
            export(where, folder / f"{number}.gguf", format="gguf", **chosen)
            contestant = LlamaCpp(folder / f"{number}.gguf", options.threads)
            prompts[name] = lambda c=contestant: c.prompt(ids[0].tolist())
            decodes[name] = lambda c=contestant: c.decode(ids[0].tolist(), options.new)
    except ImportError:
        engine = "llama-cpp-python is not installed"
    print("reading and writing, in turns", flush=True)
    prompt, decode = in_turns(prompts, options.rounds), in_turns(decodes, options.rounds)
    compiled = kernels()
    result: dict[str, Any] = {
        "threads": options.threads,
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "kernels": compiled.path if compiled else "reference",
        "paths": list(PATHS),
        "engine": engine,
        "prompt_tokens_per_second": {name: options.prompt / seconds for name, seconds in prompt.items()},
        "decode_tokens_per_second": {name: 1 / seconds for name, seconds in decode.items()},
    }
    for key in ("prompt_tokens_per_second", "decode_tokens_per_second"):
        print(key, json.dumps({name: round(value, 1) for name, value in result[key].items()}), flush=True)
    about = {"recipe": RECIPE, "model": "GPT-2 124M", "settings": quick_settings(options)}
    if options.quick:
        return append("runtime", result, options.results, **about)
    result["bandwidth_gb_per_second"] = bandwidth()
    result["memory"] = {"file_bytes": inspect(where)["file_bytes"], **memory(where)}
    tiny = GPT2LMHeadModel(GPT2Config(n_embd=48, n_positions=32, vocab_size=100, bos_token_id=0, eos_token_id=0))
    tiny.save_pretrained(folder / "tiny")  # what a first load costs, of whatever model
    result["memory"]["tiny_resident_bytes"] = memory(folder / "tiny")["resident_bytes"]
    print(json.dumps({key: result[key] for key in ("bandwidth_gb_per_second", "memory")}), flush=True)
    result["forced_paths"] = forced(where, options)
    print(json.dumps(result["forced_paths"]), flush=True)
    result["growth"] = growth(folder / "long")
    append("runtime", result, options.results, **about)


if __name__ == "__main__":
    main()

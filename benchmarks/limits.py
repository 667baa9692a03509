"""How near a packed model comes to what this processor's AVX2 multiplies and its memory copies, all in one run.

    python benchmarks/limits.py [--shape gpt2|smollm2] [--threads 2] [--prompt 512] [--new 32] [--rounds 5] [--quick]

Random weights of a true shape, in 2 bits without training, beside torch in FP32: a prompt (logits of the last position
alone), tokens one by one, loading. The limit of a prompt is benchmarks/limit.cpp, which a C++ compiler must build; that
of decoding is a copy of 64 MB. A row of benchmarks/results/limits.jsonl.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import append, quick_settings, speed_options
from transformers import LlamaConfig, LlamaForCausalLM

from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.evaluation.speed import decode_seconds, in_turns, memory, prompt_seconds
from abridged.exporters.dense import dense_model
from abridged.models.load import load_tokenizer
from abridged.runtime.kernels import kernels
from abridged.runtime.modules import PackedLinear
from runtime import RECIPE, build, gpt2, prompt_ids, written

COPIED = 64 << 20  # bytes: more than caches hold


def smollm2() -> Any:
    """SmolLM2-135M with random weights (its config.json on the hub)."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    sizes |= {"num_key_value_heads": 3, "vocab_size": 49_152, "max_position_embeddings": 8192}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))


#: Of each shape its name, how it is made, and the recipe: scales of 256 columns do not fit rows of 576.
SHAPES: dict[str, tuple[str, Callable[[], Any], str]] = {
    "gpt2": ("GPT-2 124M", gpt2, RECIPE),
    "smollm2": ("SmolLM2-135M", smollm2, "best-2-2-8"),
}


def limit(folder: Path) -> Path:
    """The program that measures what AVX2 multiplies."""
    program, source = folder / "limit", Path(__file__).parent / "limit.cpp"
    subprocess.run(["c++", "-O2", "-std=c++17", "-pthread", str(source), "-o", str(program)], check=True)
    return program


def products_of_a_token(model: Any) -> int:
    """Products of the packed matrices for one token of a prompt; the head reads the last one alone."""
    layers = [m for m in model.modules() if isinstance(m, PackedLinear) and m is not model.get_output_embeddings()]
    return sum(layer.out_features * layer.in_features for layer in layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = speed_options(parser, new=16, rounds=1)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        measure(options, Path(name))


def measure(options: argparse.Namespace, folder: Path) -> None:
    name, new, recipe = SHAPES[options.shape]
    where, ids, program = build(folder / "packed", new, recipe), prompt_ids(options.prompt), limit(folder)
    packed, tokenizer = load(where), load_tokenizer(where)
    dense = dense_model(packed, torch.float32)
    text = tokenizer.decode(ids[0])
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)

    def multiplied() -> float:  # seconds for 10^9 products
        return 1 / float(subprocess.run([program, str(options.threads)], capture_output=True, check=True).stdout)

    def copied() -> float:
        begun = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - begun

    seconds = in_turns(
        {
            "limit": multiplied,
            "packed, prompt": lambda: prompt_seconds(packed, ids),
            "torch FP32, prompt": lambda: prompt_seconds(dense, ids),
            "copy": copied,
            "packed, generate": lambda: decode_seconds(packed, ids, options.new),
            "packed, abridged generate": lambda: written(packed, tokenizer, text, options.new),
            "torch FP32, generate": lambda: decode_seconds(dense, ids, options.new),
        },
        options.rounds,
    )
    held = memory(where)
    dense.save_pretrained(folder / "dense")
    loaded = memory(folder / "dense")
    compiled, file_bytes = kernels(), inspect(where)["file_bytes"]
    products = products_of_a_token(packed)
    fastest = min(seconds["packed, generate"], seconds["packed, abridged generate"])
    result = {
        "threads": options.threads,
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "kernels": compiled.path if compiled else "reference",
        "prompt_tokens_per_second": {
            "packed": options.prompt / seconds["packed, prompt"],
            "torch FP32": options.prompt / seconds["torch FP32, prompt"],
        },
        "decode_tokens_per_second": {
            "packed": 1 / seconds["packed, generate"],
            "packed, abridged generate": 1 / seconds["packed, abridged generate"],
            "torch FP32": 1 / seconds["torch FP32, generate"],
        },
        "products_of_a_token": products,
        "products_per_second": 1e9 / seconds["limit"],
        "copied_bytes_per_second": COPIED / seconds["copy"],
        "share_of_products": 1e-9 * products * seconds["limit"] * options.prompt / seconds["packed, prompt"],
        "share_of_copying": file_bytes / fastest * seconds["copy"] / COPIED,
        "memory": {"file_bytes": file_bytes, **held},
        "dense_load_seconds": loaded["load_seconds"],
    }
    print(result, flush=True)
    append("limits", result, options.results, recipe=recipe, model=name, settings=quick_settings(options))


if __name__ == "__main__":
    main()

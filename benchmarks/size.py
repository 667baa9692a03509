"""File sizes of the true shapes of GPT-2, BART-base and BERT-base, compressed as recipes would, with random weights.

    python benchmarks/size.py [--cases CASE …]

Sizes do not depend on the weights' values, so random ones will do. MB = 2^20 bytes. Each case is a row of
benchmarks/results/size.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from results import append
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.recipe import Recipe

MEGABYTE = 1 << 20
QUANTIZE = "stages.*.methods.quantize"
FIVE_A_BYTE = [f"{QUANTIZE}.weights.packing=base3", f"{QUANTIZE}.embeddings.packing=base3"]
ONE_BIT = [f"{QUANTIZE}.weights.bits=1", f"{QUANTIZE}.embeddings.bits=1"]
#: The same for KnGPT2's, of whose stages the last one quantises.
FACTORS_FIVE_A_BYTE = [f"stages.1.methods.quantize.{part}.packing=base3" for part in ("weights", "embeddings")]
EVERY_LAYER = ["stages.*.methods.kronecker.layers=all"]
#: Starts that read no data: only bytes are measured.
NO_DATA = ["stages.*.methods.kronecker.initialization=nearest", f"{QUANTIZE}.gptq=false"]
#: The same for a recipe whose last two stages alone have two bits.
FIVE_AT_LAST = [
    f"stages.{i}.methods.quantize.{part}.packing=base3" for i in (2, 3) for part in ("weights", "embeddings")
]
WIDE_REST = [
    f"{QUANTIZE}.positions=false",
    f"{QUANTIZE}.unquantized=float32",
    f"{QUANTIZE}.weights.granularity=per_tensor",  # as published
]
CASES: dict[str, tuple[str, str, list[str], float]] = {
    "quantgpt-8-8-8": ("gpt2", "quantgpt-8-8-8", [], 121.6),
    "quantgpt-4-4-8": ("gpt2", "quantgpt-4-4-8", [], 62.7),
    "quantgpt-2-2-8": ("gpt2", "quantgpt-2-2-8", [], 33.2),
    "quantgpt-2-2-8, five codes a byte": ("gpt2", "quantgpt-2-2-8", FIVE_A_BYTE, 28.0),
    "quantgpt at 1-1-8": ("gpt2", "quantgpt-2-2-8", ONE_BIT, 18.5),
    "best-2-2-8": ("gpt2", "best-2-2-8", [], 33.15),
    "best-ternary-2-2-8": ("gpt2", "best-ternary-2-2-8", [], 33.15),
    "best-1-1-8": ("gpt2", "best-1-1-8", [], 18.5),
    "kngpt2-2-2-8": ("gpt2", "kngpt2-2-2-8", [], 23.6),
    "kngpt2-2-2-8, five codes a byte": ("gpt2", "kngpt2-2-2-8", FACTORS_FIVE_A_BYTE, 19.7),
    "kngpt2-2-2-8, every layer factored": ("gpt2", "kngpt2-2-2-8", EVERY_LAYER, 18.6),
    "kngpt2-2-2-8, both": ("gpt2", "kngpt2-2-2-8", [*FACTORS_FIVE_A_BYTE, *EVERY_LAYER], 15.7),
    "best-kngpt2-2-2-8": ("gpt2", "best-kngpt2-2-2-8", NO_DATA, 23.6),
    "BART 8-8-8": ("bart", "quantgpt-8-8-8", [], 138.3),
    "BART 2-2-8": ("bart", "quantgpt-2-2-8", [], 39.8),
    "BART 2-2-8, five codes a byte": ("bart", "quantgpt-2-2-8", FIVE_A_BYTE, 34.0),
    "BART 1-1-8": ("bart", "quantgpt-2-2-8", ONE_BIT, 23.4),
    "best-bart-2-2-8": ("bart", "best-bart-2-2-8", [], 39.8),
    "best-bart-1-1-8": ("bart", "best-bart-1-1-8", [], 23.4),
    "BERT 1-1-8": ("bert", "xtc-1-1-8", [], 13.5),
    "BERT 2-2-8": ("bert", "progressive-bert-2-2-8", [], 26.9),
    "best-bert-2-2-8": ("bert", "best-bert-2-2-8", [], 26.9),
    "BERT 2-2-8, five codes a byte": ("bert", "progressive-bert-2-2-8", FIVE_AT_LAST, 21.8),
    "BERT 1-1-8, FP32 positions and norms": ("bert", "xtc-1-1-8", WIDE_REST, 15.1),
    "BERT 2-2-8, FP32 positions and norms": ("bert", "progressive-bert-2-2-8", WIDE_REST, 28.1),
    "BERT 2-2-8, five a byte, FP32 likewise": ("bert", "progressive-bert-2-2-8", [*FIVE_AT_LAST, *WIDE_REST], 22.9),
}
"""Name: shape, recipe, what is changed in it, and the size in MB not to be passed (33.15 is that of quantgpt-2-2-8)."""


def untrained(shape: str) -> PreTrainedModel:
    """A model of the true shape with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if shape == "gpt2":
            return GPT2LMHeadModel(GPT2Config()).eval()
        if shape == "bert":
            return BertForSequenceClassification(BertConfig()).eval()
        sides = {"encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072}
        heads = {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
        return BartForConditionalGeneration(BartConfig(d_model=768, **sides, **heads)).eval()


def measure(name: str) -> dict:
    """Compress a model of random weights without training, save it, load it, and say what it weighs."""
    shape, recipe, overrides, limit = CASES[name]
    methods = Recipe.load(recipe, overrides).stages[-1].methods.values()
    student = untrained(shape)
    ids = torch.randint(student.config.vocab_size, (1, 16))
    for method in methods:
        attached = method.build(student, families.view(student), lambda model: model(ids))
        attached.finish()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "student"
        save_checkpoint(student, directory, None, {})
        with torch.no_grad():
            expected = student.eval()(ids).logits
            del student
            start = time.perf_counter()
            loaded = load(directory)
            seconds = time.perf_counter() - start
            difference = float((loaded(ids).logits - expected).abs().max())
        account = inspect(directory)
    size = account["file_bytes"] / MEGABYTE
    return {
        "file_mb": round(size, 3),
        "limit_mb": limit,
        "within": size <= limit,
        "ratio": round(account["ratio"], 2),
        "bits_per_weight": round(account["bits_per_weight"], 3),
        "parts": account["parts"],
        "bytes_in_memory": sum(tensor.nbytes for tensor in loaded.parameters()),
        "load_seconds": round(seconds, 2),
        "logits_max_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    options = parser.parse_args()
    for name in options.cases:
        found, (shape, recipe, overrides, limit) = measure(name), CASES[name]
        append("size", found, name=name, model=shape, recipe=recipe, overrides=overrides)
        print(f"{name:40} {found['file_mb']:8.2f} MB  (limit {limit} MB, {found['ratio']}x)", flush=True)


if __name__ == "__main__":
    main()

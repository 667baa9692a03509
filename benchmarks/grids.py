"""Grids and starts without training: what a language model loses to each, weights fake-quantised.

    python benchmarks/grids.py MODEL DATA CASE [CASE ...]

MODEL is a directory (`benchmarks/real.py make`), DATA one with WikiText-2's train and validation texts. A CASE is
settings of the method `quantize` as YAML, activations left as they are unless it says otherwise. Perplexity is over
windows of 512 tokens from the start of the validation text, calibration over as many windows of the training text as
hold `--calibration` tokens. Each case is a row of benchmarks/results/grids.jsonl, with the bytes of its weights.
"""

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from results import append
from torch import nn

from abridged import families
from abridged.checkpoint.pack import specs_of
from abridged.methods.quantization import attached, importance
from abridged.methods.quantization.importance import CAP
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_any, load_tokenizer

WINDOW = 512


def windows(tokenizer: Any, text: Path, tokens: int) -> torch.Tensor:
    """The first tokens of a text, (tokens / WINDOW, WINDOW)."""
    found = tokenizer(text.read_text(encoding="utf-8")[: 8 * tokens], return_tensors="pt").input_ids[0]
    return found[: tokens // WINDOW * WINDOW].view(-1, WINDOW)


@torch.no_grad()
def perplexity(model: nn.Module, texts: torch.Tensor) -> float:
    """exp of the mean loss of the tokens after the first of each window."""
    losses = [float(model(input_ids=text[None], labels=text[None], use_cache=False).loss) for text in texts]
    return math.exp(sum(losses) / len(losses))


def weight_bytes(model: Any) -> int:
    """Bytes of codes, scales and zero points, and of all else in FP32."""
    specs = specs_of(model)
    matrices = {path: spec for path, spec in specs.items() if hasattr(spec, "storage") and spec.tied is None}
    packed = sum(
        spec.storage.packed_bytes + spec.storage.zero_bytes + spec.num_scales * (2 if "16" in spec.scale_dtype else 4)
        for spec in matrices.values()
    )
    quantised = {f"{path}.source." for path in specs}
    rest = {id(p): p.numel() for n, p in model.named_parameters() if not any(n.startswith(q) for q in quantised)}
    return packed + 4 * sum(rest.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibration", type=int, default=4096)
    parser.add_argument("--cap", type=float, default=CAP, help="of a token's energy, in those of the median token")
    arguments = parser.parse_args()
    attached.CAP = importance.CAP = arguments.cap
    whole = load_any(arguments.model).float().eval()
    tokenizer = load_tokenizer(arguments.model, whole)
    validation = windows(tokenizer, next(arguments.data.glob("*valid*")), arguments.tokens)
    training = windows(tokenizer, next(arguments.data.glob("*train*")), arguments.calibration)
    base = perplexity(whole, validation)
    print(f"teacher {base:.2f}", flush=True)

    def calibrate(model: nn.Module, tokens: int | None = None) -> None:
        with torch.no_grad():
            for batch in training.split(4) if tokens is None else [training]:
                model(input_ids=batch, use_cache=False)

    for case in arguments.cases:
        began, model = time.perf_counter(), copy.deepcopy(whole)
        settings = Quantize(**{"activations": {"bits": None}, **yaml.safe_load(case)})
        settings.build(model, families.view(model), calibrate).finish()
        seconds = time.perf_counter() - began
        found = perplexity(model, validation)
        row = {
            "perplexity": found,
            "teacher": base,
            "loss_percent": 100 * (found / base - 1),
            "megabytes": weight_bytes(model) / 1e6,
            "seconds": seconds,
        }
        text = {"tokens": validation.numel(), "calibration_tokens": training.numel(), "cap": arguments.cap}
        append("grids", row, model=arguments.model.name, settings={"case": yaml.safe_load(case), **text})
        print(
            f"{found:9.2f} {row['loss_percent']:8.1f} % {row['megabytes']:7.2f} MB {seconds:5.0f} s  {case}", flush=True
        )


if __name__ == "__main__":
    main()

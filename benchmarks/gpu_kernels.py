"""Products with packed matrices on a GPU: Triton's kernels beside the torch reference, dense bf16, gemlite and torchao.

    pip install gemlite torchao                 # for their rows; left out where they are missing
    python benchmarks/gpu_kernels.py [--rounds 20] [--tiny]

Random matrices of true shapes in 2 bits with a scale a row; 1 token reads the weights, 512 multiply. gemlite is given
the same codes, which it serves without loss; torchao's types are of other sizes and stand beside them. One row of
benchmarks/results/gpu_kernels.jsonl. `--tiny` goes through all of it on a CPU, by Triton's interpreter.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch
from results import RESULTS, append
from torch import Tensor, nn

from abridged.runtime.activations import Rounding
from abridged.runtime.backends import Reference, Triton
from abridged.runtime.weight import PackedWeight
from abridged.storage.matrix import Storage
from abridged.storage.packing import pack

#: (rows, columns): GPT-2 124M's up, down and head, and LLaMA 8B's up.
SHAPES = ((3072, 768), (768, 3072), (50257, 768), (14336, 4096))
TOKENS = (1, 16, 512, 2048)

Run = Callable[[Tensor], Any]


def contestants(levels: Tensor, scales: Tensor) -> dict[str, Run | str]:
    """Who multiplies with ternary levels (rows, columns) and their scales (rows,); or why somebody does not."""
    rows, columns = levels.shape
    storage = Storage(rows, columns, "ternary", "bits", rows)
    weight = PackedWeight(pack(levels, "ternary", "bits"), scales, storage)
    dense = (levels * scales[:, None]).to(torch.bfloat16)
    triton, reference = Triton().prepare(weight), Reference().prepare(weight)
    found: dict[str, Run | str] = {
        "Triton, 2 bits": lambda x: Triton().linear(triton, x, None),
        "Triton, 2 bits, activations in 8": lambda x: Triton().linear(triton, x, None, Rounding(8)),
        "Triton, unpacking alone": lambda x: triton.unpack(torch.bfloat16),
        "reference, 2 bits": lambda x: Reference().linear(reference, x, None),
        "torch bf16": lambda x: nn.functional.linear(x, dense),
    }
    for name, make in {"gemlite, 2 bits": gemlite, "torchao, 8 bits": torchao_8, "torchao, 4 bits": torchao_4}.items():
        try:
            found[name] = make(levels, scales, dense)
        except Exception as error:  # theirs, of any kind: a missing package, a device that they do not know
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found


def gemlite(levels: Tensor, scales: Tensor, dense: Tensor) -> Run:
    from gemlite import DType, GemLiteLinear

    rows, columns = levels.shape
    layer = GemLiteLinear(
        2, group_size=columns, in_features=columns, out_features=rows, input_dtype=DType.BF16, output_dtype=DType.BF16
    )
    zeros = torch.ones(rows, 1, dtype=torch.bfloat16, device=levels.device)
    layer.pack((levels + 1).to(torch.uint8), scales[:, None].bfloat16(), zeros, None)
    run: Run = layer
    return run


def torchao_8(levels: Tensor, scales: Tensor, dense: Tensor) -> Run:
    from torchao.quantization import Int8WeightOnlyConfig

    return _torchao(dense, Int8WeightOnlyConfig())


def torchao_4(levels: Tensor, scales: Tensor, dense: Tensor) -> Run:
    from torchao.quantization import Int4WeightOnlyConfig

    return _torchao(dense, Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d"))


def _torchao(dense: Tensor, config: Any) -> Run:
    from torchao.quantization import quantize_

    layer = nn.Linear(dense.shape[1], dense.shape[0], bias=False, dtype=dense.dtype, device=dense.device)
    layer.weight = nn.Parameter(dense.clone())
    quantize_(layer, config)
    run: Run = torch.compile(layer)
    return run


def milliseconds(run: Run, x: Tensor, rounds: int) -> float:
    """The median time of a call."""
    if not x.is_cuda:
        import time

        begun = time.perf_counter()
        run(x)
        return 1e3 * (time.perf_counter() - begun)
    run(x)  # compiles, and finds its sizes of blocks
    flush = torch.empty(128 << 20, dtype=torch.uint8, device=x.device)  # what is in the cache is not in memory
    times = []
    for _ in range(rounds):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run(x)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[rounds // 2]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="small matrices on the CPU")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    shapes, lengths = (((64, 128),), (1, 20)) if options.tiny else (SHAPES, TOKENS)
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --tiny goes through it on the CPU")
    cases: dict[str, dict[str, Any]] = {}
    for rows, columns in shapes:
        generator = torch.Generator(device).manual_seed(0)
        levels = torch.randint(-1, 2, (rows, columns), generator=generator, device=device)
        runs = contestants(levels, torch.rand(rows, generator=generator, device=device) + 0.1)
        for tokens in lengths:
            x = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16, generator=generator)
            case = cases[f"{rows}x{columns}, {tokens} tokens"] = {}
            for name, run in runs.items():
                try:
                    case[name] = run if isinstance(run, str) else round(milliseconds(run, x, options.rounds), 4)
                except Exception as error:
                    if not name.startswith(("gemlite", "torchao")):
                        raise
                    case[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"{rows}x{columns}, {tokens} tokens: {case}", flush=True)
    append("gpu_kernels", {"milliseconds": cases}, options.results, settings={"tiny": True} if options.tiny else None)


if __name__ == "__main__":
    main()

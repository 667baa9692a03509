"""Layers whose inputs are not rounded: the kernels against the reference and dense FP32, in turns within one run.

    python benchmarks/weight_only.py [--quick] [--rounds 20] [--threads 1]

One matrix of the shape of SmolLM2-135M's (1536 x 576) with random weights, a scale and a zero point for every 64, at
the bits of the block-wise recipes. Times are processor seconds of one call: of one token, and of 256. A row of
benchmarks/results/weight_only.jsonl.
"""

import argparse
import statistics
import time

import torch
from results import append

from abridged.runtime.backends import BACKENDS
from abridged.runtime.kernels import kernels
from abridged.runtime.weight import PackedWeight
from abridged.storage.matrix import Storage
from abridged.storage.packing import pack, pack_zeros

ROWS, COLUMNS, GROUP = 1536, 576, 64
BITS, TOKENS = (2, 3, 4, 5, 6, 8), (1, 256)


def drawn(bits: int) -> PackedWeight:
    """A random matrix of that many bits."""
    book, scales = f"uint{bits}", ROWS * COLUMNS // GROUP
    codes = pack(torch.randint(2**bits, (ROWS, COLUMNS)), book, "bits")
    zeros = pack_zeros(torch.full((scales,), 2 ** (bits - 1)), book, "bits")
    return PackedWeight(codes, torch.rand(scales), Storage(ROWS, COLUMNS, book, "bits", scales), zeros)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under two minutes")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else options.rounds
    dense, cases = torch.randn(ROWS, COLUMNS), {}
    for bits in BITS:
        weight = drawn(bits)
        for tokens in TOKENS:
            x, calls = torch.randn(tokens, COLUMNS), 10 if tokens == 1 else 1
            works = {b.name: lambda b=b, h=b.prepare(weight), x=x: b.linear(h, x, None) for b in BACKENDS}
            works["torch FP32"] = lambda x=x: torch.nn.functional.linear(x, dense)
            taken: dict[str, list[float]] = {name: [] for name in works}
            with torch.inference_mode():
                for number in range(rounds + 1):
                    for name, work in works.items():
                        begun = time.process_time()
                        for _ in range(calls):
                            work()
                        if number:
                            taken[name].append((time.process_time() - begun) / calls)
            row = {name: statistics.median(times) for name, times in taken.items()}
            cases[f"{bits} bits, {tokens} token{'s' * (tokens > 1)}"] = row
            print(f"{bits} bits, {tokens}: " + ", ".join(f"{n} {1e6 * s:,.0f} us" for n, s in row.items()), flush=True)
    compiled = kernels()
    settings = {"quick": options.quick, "threads": options.threads}
    metrics = {"cases": cases, "rounds": rounds, "kernels": compiled.path if compiled else "reference"}
    append("weight_only", metrics, model="SmolLM2-135M", settings=settings)


if __name__ == "__main__":
    main()

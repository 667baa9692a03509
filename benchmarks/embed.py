"""Texts a second of `abridged embed` against its workers: processes of one thread each.

    python benchmarks/embed.py MODEL TEXTS.txt [--count 2000] [--workers 1 2]

Each number of workers makes the vectors of the same texts once, a shard a worker and turn. Seconds are counted from the
first shard that is there to the last, so that loading, which happens once in each worker, weighs as little as it does
in a long run. A row of benchmarks/results/embed.jsonl for each, with the machine's load average, since whatever else
runs takes its share.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import results

from abridged.core.names import public_name
from abridged.core.parallel import spread
from abridged.data.text_source import TextSource
from abridged.index.shards import Shards


def measure(shards: Shards, workers: int) -> dict[str, float]:
    """Texts a second of `workers` that make all shards, and how many processes wanted to run meanwhile."""
    numbers, began, done = list(range(len(shards))), 0.0, 0
    for count in spread(shards.begin, numbers, workers):
        if began:
            done += count["rows"]
        began = began or time.perf_counter()
    return {"texts_per_second": done / (time.perf_counter() - began), "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    for workers in given.workers:
        with tempfile.TemporaryDirectory() as folder:
            with given.texts.open(encoding="utf-8") as lines:
                some = [line for _, line in zip(range(given.count), lines, strict=False)]
            path = Path(folder) / "texts.txt"
            path.write_text("".join(some), encoding="utf-8")
            shards = Shards(given.model, TextSource.open(path), Path(folder), rows=max(1, given.count // 16))
            found = measure(shards, workers)
        words = sum(len(line.split()) for line in some) / len(some)
        settings = {"workers": workers, "count": len(some), "words": round(words, 1)}
        results.append("embed", found, name="processes", model=public_name(given.model), settings=settings)
        print(workers, found)


if __name__ == "__main__":
    main()

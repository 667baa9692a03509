"""What a training step costs in this checkout and in another one, steps in turns.

    git worktree add ../before COMMIT
    python benchmarks/training_step.py ../before [--recipe quantgpt-2-2-8] [--rounds 12] [--batch-size 4]

A process of each checkout compresses the model as `abridged compress` does, and waits before every step until it is
told to go on; whoever goes first changes every round, so that what else the machine does falls on both alike. A row of
benchmarks/results/training_step.jsonl: seconds of each step, and the median over rounds of their ratios (above 1: this
checkout is faster).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkouts import use

ROOT = Path(__file__).parent.parent
WARM_UP = 2  #: steps that do not count


class Worker:
    """A process of one checkout, in the middle of a training."""

    def __init__(self, checkout: Path, options: argparse.Namespace) -> None:
        self.checkout = checkout.resolve()
        shared = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("model", "recipe", "batch_size")]
        command = [sys.executable, __file__, str(self.checkout), "--work", *shared]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        """Seconds of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def commit(self) -> str:
        command = ["git", "-C", str(self.checkout), "describe", "--always", "--dirty"]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def work(options: argparse.Namespace) -> None:
    """Compress, one step whenever a line comes in, and print its seconds; until no line comes any more."""
    use(options.other)
    import abridged
    from abridged.training.loop import Trainer

    step = Trainer.step

    def timed(trainer: Trainer) -> None:
        if not sys.stdin.readline():
            sys.exit()
        began = time.perf_counter()
        step(trainer)
        print(time.perf_counter() - began, flush=True)

    Trainer.step = timed  # type: ignore[method-assign]
    settings = {"steps": 10**6, "batch_size": options.batch_size, "compile": "no", "save_every": 10**6}
    overrides = [f"stages.0.{key}={value}" for key, value in {**settings, "evaluate_every": 10**6}.items()]
    with tempfile.TemporaryDirectory() as folder:
        abridged.compress(options.model, options.recipe, "wikitext-2", Path(folder) / "out", overrides=overrides)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Steps in turns."""
    workers = {"here": Worker(ROOT, options), "other": Worker(options.other, options)}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(WARM_UP + options.rounds):
        for name in list(workers)[:: 1 if number % 2 else -1]:
            taken = workers[name].step()
            if number >= WARM_UP:
                seconds[name].append(round(taken, 5))
    for worker in workers.values():
        worker.close()
    ratios = [other / here for here, other in zip(seconds["here"], seconds["other"], strict=True)]
    return {
        "batch_size": options.batch_size,
        "commits": {name: worker.commit() for name, worker in workers.items()},
        "seconds": seconds,
        "speed_ratio": round(statistics.median(ratios), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the root of another checkout")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--recipe", default="quantgpt-2-2-8")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    from results import append

    result = measure(options)
    append("training_step", result, model=options.model, recipe=options.recipe)
    print(f"{result['speed_ratio']:.3f} of the other checkout's speed")


if __name__ == "__main__":
    main()

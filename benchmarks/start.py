"""Starting: `abridged generate` of one token as a whole process, against importing torch, in turns within one run.

    python benchmarks/start.py [--quick] [--other CHECKOUT] [--rounds 15] [--threads 1]

A packed GPT-2 of the true 124M shape with random weights. Times are wall-clock and processor seconds of processes; what
is over importing torch is the median, over the rounds, of the difference of two that ran one after the other. --other
has another checkout take part, for before and after. A row of benchmarks/results/start.jsonl.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
NEW_TOKENS = (1, 16)


def seconds(code: str, threads: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of a Python process."""
    begun = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}: {code}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def generating(checkout: Path, model: Path, tokens: int) -> str:
    """What the command `abridged generate` of a checkout does."""
    arguments = ["abridged", "generate", str(model), "x", "--max-new-tokens", str(tokens), "--seed", "1"]
    path, checkout_path = str(HERE / "benchmarks"), str(checkout)
    return "; ".join(
        [
            f"import sys; sys.path.insert(0, {path!r})",
            f"from pathlib import Path; from checkouts import use; use(Path({checkout_path!r}))",
            f"from abridged.cli import main; sys.argv = {arguments!r}; main()",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under two minutes")
    parser.add_argument("--other", type=Path, help="another checkout, with its compiled kernels in place")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    from results import append

    from runtime import build

    with tempfile.TemporaryDirectory() as name:
        model = build(Path(name))
        contestants = {"import torch": "import torch"}
        for side, checkout in (("this", HERE), ("other", options.other)):
            for tokens in NEW_TOKENS if checkout else ():
                what = f"generate, {tokens} token{'s' * (tokens > 1)}"
                contestants[what if side == "this" else f"{what}, other"] = generating(checkout, model, tokens)
        taken: dict[str, list[tuple[float, float]]] = {what: [] for what in contestants}
        for number in range(rounds + 1):
            for what, code in contestants.items():
                found = seconds(code, options.threads)
                if number:  # the first brings files into memory
                    taken[what].append(found)
            print(f"round {number} of {rounds}", end="\r", file=sys.stderr, flush=True)
    cases = {}
    for what, times in taken.items():
        cases[what] = {
            kind: statistics.median(one[i] for one in times) for i, kind in enumerate(("seconds", "processor_seconds"))
        }
        for i, kind in enumerate(("seconds", "processor_seconds")):
            over = [one[i] - torch[i] for one, torch in zip(times, taken["import torch"], strict=True)]
            cases[what][f"{kind}_over_torch"] = statistics.median(over)
        row = cases[what]
        print(
            f"{what}: {row['seconds']:.2f} s ({row['processor_seconds']:.2f} of the processor), over importing torch "
            f"{row['seconds_over_torch']:.2f} s ({row['processor_seconds_over_torch']:.2f})"
        )
    settings = {"quick": options.quick, "threads": options.threads}
    append("start", {"cases": cases, "rounds": rounds}, model="GPT-2 124M", settings=settings)


if __name__ == "__main__":
    main()

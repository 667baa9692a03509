"""The quick runs of every benchmark of speed, beside the committed numbers of the nearest processor.

    python benchmarks/bench.py [--only runtime,index] [--record]        # make bench

Nothing that is committed changes unless --record asks for it: then the rows, which say that they were quick, are added
to benchmarks/results, where pages pass over them.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import RESULTS, by_processor, processor_of
from speeds import SPEEDS, Row, nearness, spoken

HERE = Path(__file__).parent


def run(benchmark: str, folder: Path) -> list[Row]:
    """Its quick rows of now, which go to a folder. Raises CalledProcessError where it fails."""
    begun = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    command = [sys.executable, str(HERE / f"{benchmark}.py"), "--quick", "--results", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return [row for row in by_processor(benchmark, folder) if row.get("quick") and row["date"] >= begun]


def beside(rows: list[Row], committed: list[Row], benchmark: str) -> list[list[str]]:
    """Lines of the table: what, here, committed, how many times as fast, and on which processor that was."""
    lines = []
    for row in rows:
        for what, unit, number in SPEEDS[benchmark](row):
            number_there, where = nearest(what, row, committed, benchmark)
            ratio = ""
            if number_there:
                ratio = f"{number_there / number if unit in ('s', 'ms') else number / number_there:.2f}×"
            there = spoken(number_there) if number_there else "–"
            lines.append([what, f"{spoken(number)} {unit}", there, ratio, where])
    return lines


def nearest(what: str, row: Row, committed: list[Row], benchmark: str) -> tuple[float | None, str]:
    """That headline in the row of the nearest processor that has it, whole runs before quick ones; and which it is."""
    found: list[tuple[Any, float, Row]] = []
    for other in committed:
        for title, _, number in SPEEDS[benchmark](other):
            if title == what:
                key = (nearness(other, row), not other.get("quick"), other["date"] or "")
                found.append((key, number, other))
    if not found:
        return None, ""
    _, number, other = max(found, key=lambda one: one[0])
    return number, processor_of(other) + (" (quick)" if other.get("quick") else "")


def table(lines: list[list[str]]) -> str:
    """Columns of equal width."""
    lines = [["", "here", "committed", "speed", "committed on"], *lines]
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    form = "  ".join(f"{{:{'>' if 0 < i < 4 else '<'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(form.format(*line).rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*SPEEDS], help="names, with commas")
    parser.add_argument("--record", action="store_true", help="add the rows to benchmarks/results")
    options = parser.parse_args()
    if unknown := {*options.only} - {*SPEEDS}:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; known are {', '.join(SPEEDS)}")
    lines: list[list[str]] = []
    failed, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        for benchmark in options.only:
            committed, begun = by_processor(benchmark), time.perf_counter()
            print(f"{benchmark} … ", end="", file=sys.stderr, flush=True)
            try:
                rows = run(benchmark, RESULTS if options.record else Path(name))
            except subprocess.CalledProcessError as error:
                failed.append(benchmark)
                print(f"failed: {(error.stderr.strip().splitlines() or ['it says nothing'])[-1]}", file=sys.stderr)
                continue
            print(f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
            lines += beside(rows, committed, benchmark)
    if lines:
        print(table(lines))
        print(f"\nhere: {processor_of(rows[0])}" if rows else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

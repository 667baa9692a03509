"""The table of results: `benchmarks/NAME.py` appends rows to benchmarks/results/NAME.jsonl; pages are made of these.

A row is a line of JSON that says all of itself: what was measured (FIELDS), what came out (metrics), and by which
command, commit and processor. Nothing is changed once it is written; of rows with the same KEY the newest counts. What
older rows did not record is null. A benchmark of speed has `--quick` (`speed_options`): fewer rounds, the headline
rows, in under two minutes on two cores; its rows say `quick: true` in their settings, and pages pass over them.
"""

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from abridged.core.record import environment

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
#: benchmark: the script, and its verb where it has several; name: of a contestant, or of a case. Without a name, recipe
#: and overrides say what was run. settings: what else tells a row from others, such as steps.
FIELDS = ("benchmark", "name", "recipe", "model", "task", "seed", "overrides", "settings")
KEY = ("benchmark", "name", "model", "task", "seed", "settings")
MADE_BY = ("command", "commit", "processor", "versions", "date")


class NotMeasured(LookupError):
    """No row has the fields that were asked for."""


def append(benchmark: str, metrics: dict[str, Any], folder: Path = RESULTS, **fields: Any) -> None:
    """Add a row. It is on the disk when this returns; several processes may append to one file.

    Args:
        metrics: what came out, as JSON has it.
        fields: those of FIELDS that the row has.
    """
    row = dict.fromkeys(FIELDS) | fields | {"benchmark": benchmark, "metrics": metrics} | _made_by()
    row["settings"] = row["settings"] or None
    clash = {*metrics} & {*FIELDS, "metrics", *MADE_BY} | {*metrics} & {*(row["settings"] or {})}
    if unknown := {*fields} - {*FIELDS} or clash:
        raise ValueError(f"a row of {benchmark} cannot have {', '.join(sorted(unknown))} there")
    folder.mkdir(parents=True, exist_ok=True)
    with _file(benchmark, folder).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # what a killed process left of a line
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(benchmark: str, folder: Path = RESULTS, **wanted: Any) -> list[Row]:
    """The rows of a benchmark that have these fields or settings, in the order in which each was first there: fields,
    settings and metrics beside each other. Rows of quick runs only where `quick=True` is wanted."""
    wanted = {"quick": None} | wanted
    rows = _newest(benchmark, folder, lambda row: None)
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def by_processor(benchmark: str, folder: Path = RESULTS) -> list[Row]:
    """As `read`, the newest of each processor (`processor_of`), and those of quick runs, too."""
    return _newest(benchmark, folder, processor_of)


def processor_of(row: Row) -> str:
    """A row's processor by name, family and model, and the kernels that were forced on it, if any were."""
    made = row["processor"]
    numbers = [f"{key} {made[key]}" for key in ("family", "model") if made.get(key) is not None]
    forced = [f"forced to {made['forced']}"] if made.get("forced") else []
    return ", ".join([made["cpu"], *([" ".join(numbers)] if numbers else []), *forced])


def _newest(benchmark: str, folder: Path, also: Callable[[Row], Any]) -> list[Row]:
    """The newest row of each KEY and of whatever `also` tells of it."""
    path, newest = _file(benchmark, folder), {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # a last line without its end was cut off
    for row in sorted(map(json.loads, lines), key=_age):
        if row["benchmark"] == benchmark:
            what = [row[key] for key in KEY] + ([] if row["name"] else [row["recipe"], row["overrides"]])
            key = json.dumps([*what, also(row)], sort_keys=True)
            newest[key] = {**row["metrics"], **(row["settings"] or {}), **row}
    return [*newest.values()]


def speed_options(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The command line, with what every benchmark of speed has; `quick`: defaults of its options under `--quick`."""
    parser.add_argument("--quick", action="store_true", help="fewer rounds and the headline rows alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to which rows go")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def quick_settings(options: argparse.Namespace) -> Row:
    """What tells rows of a quick run from others."""
    return {"quick": True} if options.quick else {}


def latest(benchmark: str, folder: Path = RESULTS, **wanted: Any) -> Row:
    """The newest row of a benchmark with these fields or settings; raises NotMeasured where there is none."""
    rows = sorted(read(benchmark, folder, **wanted), key=_age)
    if not rows:
        raise NotMeasured(f"{benchmark} {wanted or ''} has not been measured")
    return rows[-1]


def _age(row: Row) -> str:
    return row["date"] or ""


def _file(benchmark: str, folder: Path) -> Path:
    return folder / f"{benchmark.split()[0]}.jsonl"


def _made_by() -> Row:
    known = environment()
    return {
        "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *map(_public, sys.argv[1:])]),
        "commit": COMMIT,
        "processor": {**known["hardware"], **_processor()},
        "versions": known["versions"],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _public(word: str) -> str:
    """A word of a command, of a path on this machine its last name."""
    return "=".join(Path(part).name if part.startswith("/") else part for part in word.split("="))


def _processor() -> Row:
    """Family and model as the processor numbers itself, for kinds that go by one name, and the path that was forced."""
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = {name: re.search(rf"^{name}\s*: (\d+)$", known, re.M) for name in ("cpu family", "model")}
    numbers = {name.removeprefix("cpu "): match and int(match[1]) for name, match in found.items()}
    forced = os.environ.get("ABRIDGED_KERNELS", "auto")
    return numbers if forced == "auto" else {**numbers, "forced": forced}


def _commit() -> str | None:
    """The commit that is checked out, with a + where the code is not as it has it; None where git does not say."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "../src"]).returncode == 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("" if same else "+")


#: As it is when a process starts: what is committed while it runs is not what it runs.
COMMIT = _commit()

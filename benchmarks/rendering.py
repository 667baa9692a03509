"""What the tables of results share: averaging and Markdown."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def loss(result: dict[str, Any], key: str = "perplexity") -> float:
    """Per cent of perplexity lost on the test text."""
    return result["loss_percent"][key]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation, and of how many."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f} ({len(values)} seeds)"


def rates(head: Sequence[str], columns: Sequence[dict[str, float]], against: str, digits: int = 0) -> str:
    """A row for each name in the columns: its rate, and how many times that of `against`, in each."""
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(cell for column in columns for cell in _rate(column, name, against, digits))] for name in names]
    of = against.removeprefix("torch ").partition(",")[0]
    return markdown(["", *(word for title in head for word in (title, f"of {of}"))], rows)


def _rate(column: dict[str, float], name: str, against: str, digits: int) -> tuple[str, str]:
    if name not in column:
        return "–", "–"
    return f"{column[name]:,.{digits}f}", f"{column[name] / column[against]:.2f}×"

"""What the verbs print with: JSON for programs, short tables for people."""

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from abridged.core.text import printable


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(text.encode("utf-8", "backslashreplace").decode())  # half characters as JSON writes them


def print_pairs(pairs: dict[str, str]) -> None:
    """Names and values in two aligned columns."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        typer.echo(printable(f"{name:<{width}}  {value}"))


def megabytes(count: float) -> str:
    """Bytes as MB of 2^20, the unit of the papers' tables."""
    return f"{count / 2**20:,.{2 if count >= 2**20 else 4}f} MB"


def quiet() -> None:
    """Keep the libraries' chatter off the screen: their progress bars on loading, and advice to developers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\..*")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Rows under their head, in aligned columns: those in `left` to the left, the others (numbers) to the right."""
    head, *rows = ([printable(cell) for cell in row] for row in [head, *rows])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def fast_steps(found: Mapping[str, Any]) -> str:
    """What `evaluation.speed.steps_of` found, in a few words."""
    return "yes" if found["fast_steps"] else f"no, because {found['why_not']}"

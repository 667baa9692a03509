"""What the verbs print with: JSON for programs, short tables for people."""

import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import typer


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_pairs(pairs: dict[str, str]) -> None:
    """Names and values in two aligned columns."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        typer.echo(f"{name:<{width}}  {value}")


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
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [
            f"{cell:<{w}}" if i in left else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())

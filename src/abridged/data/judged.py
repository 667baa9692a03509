"""Queries with the passages that were judged to answer them, from a file of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from abridged.core.errors import AbridgedError
from abridged.data.rows import Row, listed, rows

#: What `--task` calls them.
RETRIEVAL = "retrieval"
#: Columns that are taken for each where nobody names them.
_QUERY, _PASSAGE, _SCORE = ("query", "question"), ("passage", "document", "text", "answer"), ("relevance", "score")


@dataclass(frozen=True)
class Judged:
    """Queries, passages, and what was judged.

    Attributes:
        relevant: of each query, how relevant a passage is, by its number; all of them more than 0.
        dropped: rows without a passage.
    """

    name: str
    queries: Sequence[str]
    passages: Sequence[str]
    relevant: Sequence[dict[int, float]]
    dropped: int = 0

    def describe(self) -> str:
        """What there is, in one line."""
        count = sum(map(len, self.relevant))
        told = f"; {self.dropped:,} rows without a passage left out" if self.dropped else ""
        return (
            f"{self.name}: {len(self.queries):,} queries, {count:,} answers among {len(self.passages):,} passages{told}"
        )


def read_judged(path: Path, columns: tuple[str, ...] | None = None, limit: int | None = None) -> Judged:
    """Read rows of a query, a passage that answers it, and perhaps how well: 0 is not at all, and without one it is 1.

    Every passage is searched in, also that of a row without a query.

    Args:
        columns: (query, passage) or (query, passage, relevance); None: those that are known, or the first two.
        limit: queries at most, the first ones.

    Raises:
        AbridgedError: it cannot be read, there are no such columns, a relevance is no number, or nothing is judged.
    """
    if not path.is_file():
        raise AbridgedError(f"no such file: {path}")
    found: dict[str, dict[int, float]] = {}
    passages: dict[str, int] = {}
    names: Sequence[str] = ()
    dropped = 0
    for row in rows(path):
        names = names or _columns(path, row, columns)
        query, passage = row.text(names[0]), row.text(names[1])
        if not passage:
            dropped += 1
            continue
        number = passages.setdefault(passage, len(passages))
        worth = _relevance(row, names[2]) if len(names) > 2 else 1.0
        if query and worth > 0:
            found.setdefault(query, {})[number] = worth
    if not found:
        raise AbridgedError(f"'{path}' has no query with a passage that answers it")
    queries = list(found)[:limit]
    return Judged(path.name, queries, list(passages), [found[query] for query in queries], dropped)


def _columns(path: Path, first: Row, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    there = [str(column) for column in first]
    for column in asked or ():
        if column not in first:
            raise AbridgedError(f"'{path}' has no column '{column}': it has {listed(there)}")
    if asked is None:
        known = [next((name for name in names if name in first), None) for names in (_QUERY, _PASSAGE, _SCORE)]
        query, passage, score = known
        asked = tuple(there[:2]) if query is None or passage is None else (query, passage, *([score] if score else []))
    if len(asked) < 2:
        raise AbridgedError(f"'{path}' has the columns {listed(there)}: a query and a passage are wanted")
    return asked


def _relevance(row: Row, column: str) -> float:
    said = row.text(column)
    try:
        found = float(said)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise AbridgedError(f"{row.place} has the relevance '{said}', which is no number")
    return found

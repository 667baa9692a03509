"""How one packed matrix lies in memory and in a file. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from abridged.core.errors import AbridgedError
from abridged.storage.code_books import check_packing, has_zero_points, row_bytes


@dataclass(frozen=True)
class Storage:
    """A matrix (rows, columns) of codes, rows beginning at bytes of their own, its scales and zero points.

    Each scale covers rows * columns / num_scales consecutive weights of the row-major matrix; a weight is
    ``level * scale``, or ``(level - zero point) * scale`` where the code book has zero points.

    Raises AbridgedError for what cannot be.
    """

    rows: int
    columns: int
    code_book: str
    packing: str
    num_scales: int
    text: str = field(init=False, compare=False, repr=False)
    """All of it in a word, as the torch ops take it; `parse` reads it."""

    def __post_init__(self) -> None:
        check_packing(self.code_book, self.packing)
        if self.num_scales <= self.rows:
            fits = self.num_scales > 0 and self.rows % self.num_scales == 0
        else:
            fits = self.num_scales % self.rows == 0 and self.columns % (self.num_scales // self.rows) == 0
        if not fits:
            raise AbridgedError(f"{self.num_scales} scales do not divide a matrix of {self.rows}x{self.columns}")
        parts = (self.rows, self.columns, self.code_book, self.packing, self.num_scales)
        object.__setattr__(self, "text", ":".join(map(str, parts)))

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Storage:
        """The storage whose `text` this is."""
        rows, columns, code_book, packing, num_scales = text.split(":")
        return Storage(int(rows), int(columns), code_book, packing, int(num_scales))

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.columns, self.code_book, self.packing)

    @property
    def packed_bytes(self) -> int:
        return self.rows * self.row_bytes

    @property
    def zero_bytes(self) -> int:
        """Bytes of all zero points, which lie as one row of codes does; 0 where there are none."""
        return row_bytes(self.num_scales, self.code_book, self.packing) if has_zero_points(self.code_book) else 0

    @property
    def groups(self) -> int:
        """Scales within a row; 1 where a scale covers a row or more."""
        return max(1, self.num_scales // self.rows)

"""The integer levels that a quantised weight can take, and how many bytes a row of them needs. No torch here."""

from __future__ import annotations

import math

from abridged.core.errors import AbridgedError

CODE_BOOKS: dict[str, tuple[int, ...]] = {
    "binary": (-1, 1),
    "ternary": (-1, 0, 1),
    "quaternary": (-3, -1, 1, 3),
    "q2_0": (-1, 0, 1, 2),
    **{f"int{bits}": tuple(range(1 - 2 ** (bits - 1), 2 ** (bits - 1))) for bits in (3, 4, 5, 6, 8)},
    **{f"uint{bits}": tuple(range(2**bits)) for bits in (2, 3, 4, 5, 6, 8)},
}
"""Sorted levels of each code book; a weight is ``level * scale`` and its code is the level's index here.

Those from 0 on come with zero points: a weight is ``(level - zero point) * scale``. The scales
of ``q2_0``, which has the levels of llama.cpp's type, may be negative.
"""

CODE_WIDTHS: dict[str, int] = {book: (len(levels) - 1).bit_length() for book, levels in CODE_BOOKS.items()}
"""Bits of one code under the packing ``bits``."""

PACKINGS = ("bits", "base3")

BASE3_CODES = 5
"""Ternary codes in a byte under ``base3``: 3**5 = 243 of the 256 values are used."""


def check_packing(code_book: str, packing: str) -> None:
    """Raise :class:`AbridgedError` unless ``packing`` can store ``code_book``."""
    if code_book not in CODE_BOOKS:
        raise AbridgedError(f"unknown code book {code_book!r}; known are {', '.join(CODE_BOOKS)}")
    if packing not in PACKINGS:
        raise AbridgedError(f"unknown packing {packing!r}; known are {', '.join(PACKINGS)}")
    if packing == "base3" and code_book != "ternary":
        raise AbridgedError(f"packing base3 stores ternary codes only, not {code_book}")


def has_zero_points(code_book: str) -> bool:
    """Whether each scale of a matrix in this code book has a zero point beside it."""
    return CODE_BOOKS[code_book][0] == 0


def unit(code_book: str, packing: str) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and those bytes: 5 in one under base3, 8 in three of 3 bits."""
    check_packing(code_book, packing)
    if packing == "base3":
        return BASE3_CODES, 1
    width = CODE_WIDTHS[code_book]
    shared = math.gcd(width, 8)
    return 8 // shared, width // shared


def row_bytes(columns: int, code_book: str, packing: str) -> int:
    """Bytes of one packed row; every row starts at a byte of its own."""
    codes, size = unit(code_book, packing)
    return -(-columns * size // codes)


def storage_bits(code_book: str, packing: str) -> float:
    """Bits of storage for each weight, row ends and scales aside: as wide as a code, or 1.6 (base3)."""
    codes, size = unit(code_book, packing)
    return 8 * size / codes

"""The integer levels that a quantised weight can take, and how many bytes a row of them needs. No torch here."""

from __future__ import annotations

from abridged.errors import AbridgedError

CODE_BOOKS: dict[str, tuple[int, ...]] = {
    "binary": (-1, 1),
    "ternary": (-1, 0, 1),
    "quaternary": (-3, -1, 1, 3),
    "int4": tuple(range(-7, 8)),
    "int8": tuple(range(-127, 128)),
}
"""Sorted levels of each code book; a weight is ``level * scale`` and its code is the level's index here."""

CODE_WIDTHS: dict[str, int] = {"binary": 1, "ternary": 2, "quaternary": 2, "int4": 4, "int8": 8}
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


def codes_per_byte(code_book: str, packing: str) -> int:
    """Codes in one byte: 5 under base3, else 8, 4, 2 or 1."""
    check_packing(code_book, packing)
    return BASE3_CODES if packing == "base3" else 8 // CODE_WIDTHS[code_book]


def row_bytes(columns: int, code_book: str, packing: str) -> int:
    """Bytes of one packed row; every row starts at a byte of its own."""
    return -(-columns // codes_per_byte(code_book, packing))


def storage_bits(code_book: str, packing: str) -> float:
    """Bits of storage for each weight, row ends and scales aside: 1, 1.6 (base3), 2, 4 or 8."""
    return 8 / codes_per_byte(code_book, packing)

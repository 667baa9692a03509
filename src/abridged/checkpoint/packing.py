"""Levels to bytes and back: 1, 2, 4 or 8 bits a code, or five ternary codes in a byte.

A matrix of levels (rows, columns) becomes a flat uint8 tensor of ``rows * row_bytes`` bytes. Within a row, code i
lies in byte ``i // n`` (n codes a byte) at the i % n-th place, least significant first: bits ``(i % n) * width``
under ``bits``, digit ``3 ** (i % n)`` under ``base3``. Places after a row's last column hold code 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from abridged.checkpoint.code_books import (
    BASE3_CODES,
    CODE_BOOKS,
    CODE_WIDTHS,
    check_packing,
    codes_per_byte,
    row_bytes,
)
from abridged.errors import AbridgedError

CHECKED_AT_A_TIME = 1 << 16
"""Bytes, each of which takes eight while they are counted."""


def _place_values(code_book: str, packing: str) -> list[int]:
    """What code 1 at each place of a byte adds to the byte."""
    if packing == "base3":
        return [3**place for place in range(BASE3_CODES)]
    width = CODE_WIDTHS[code_book]
    return [1 << (width * place) for place in range(8 // width)]


@lru_cache(maxsize=64)
def byte_codes(code_book: str, packing: str) -> Tensor:
    """The codes in every byte value, (256, codes per byte) int64; places that hold no valid code say -1."""
    check_packing(code_book, packing)
    base = 3 if packing == "base3" else 1 << CODE_WIDTHS[code_book]
    codes = np.arange(256)[:, None] // np.array(_place_values(code_book, packing)) % base
    codes[codes >= len(CODE_BOOKS[code_book])] = -1
    if packing == "base3":
        codes[3**BASE3_CODES :] = -1
    return torch.from_numpy(codes)


@lru_cache(maxsize=64)
def byte_levels(code_book: str, packing: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The levels in every byte value, (256, codes per byte) in ``dtype``; an invalid code reads as level 0."""
    levels = torch.tensor([*CODE_BOOKS[code_book], 0], dtype=dtype)  # the extra last entry is what -1 picks
    return levels[byte_codes(code_book, packing)].to(device)


def pack(levels: Tensor, code_book: str, packing: str) -> Tensor:
    """Pack levels (rows, columns) of any integer dtype into a flat uint8 tensor on the same device.

    Raises :class:`AbridgedError` for a level outside the code book.
    """
    check_packing(code_book, packing)
    if levels.dim() != 2 or levels.dtype.is_floating_point:
        raise AbridgedError(f"levels must be an integer matrix, not {levels.dtype} of {tuple(levels.shape)}")
    rows, columns = levels.shape
    book = torch.tensor(CODE_BOOKS[code_book], device=levels.device)
    places = _place_values(code_book, packing)
    packed = torch.empty(rows, row_bytes(columns, code_book, packing), dtype=torch.uint8, device=levels.device)
    step = max(1, (1 << 22) // max(columns, 1))  # rows at a time: codes are int64 while they are summed
    for start in range(0, rows, step):
        part = levels[start : start + step].long()
        codes = torch.searchsorted(book, part).clamp_(max=len(book) - 1)
        if not torch.equal(book[codes], part):
            raise AbridgedError(f"levels outside the {code_book} code book {CODE_BOOKS[code_book]}")
        codes = torch.nn.functional.pad(codes, (0, packed.shape[1] * len(places) - columns))
        values = codes.view(len(part), -1, len(places)) * torch.tensor(places, device=levels.device)
        packed[start : start + step] = values.sum(dim=2).to(torch.uint8)
    return packed.flatten()


def unpack_rows(packed: Tensor, columns: int, code_book: str, packing: str, dtype: torch.dtype) -> Tensor:
    """Levels of packed rows (rows, row_bytes) uint8 as (rows, columns) in ``dtype``."""
    table = byte_levels(code_book, packing, dtype, packed.device)
    levels = table.index_select(0, packed.reshape(-1).int())
    return levels.view(packed.shape[0], packed.shape[1] * table.shape[1])[:, :columns]


def unpack(packed: Tensor, rows: int, columns: int, code_book: str, packing: str) -> Tensor:
    """Levels (rows, columns) int8 of a flat packed tensor. Raises :class:`AbridgedError` if its size is wrong."""
    check_packed(packed, rows, columns, code_book, packing)
    return unpack_rows(packed.view(rows, -1), columns, code_book, packing, torch.int8).contiguous()


def check_packed(packed: Tensor, rows: int, columns: int, code_book: str, packing: str) -> None:
    """Raise :class:`AbridgedError` unless ``packed`` is a flat uint8 tensor of the right number of bytes."""
    expected = rows * row_bytes(columns, code_book, packing)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != expected:
        raise AbridgedError(
            f"{rows}x{columns} {code_book} codes packed as {packing} are {expected} bytes of uint8, "
            f"not {packed.dtype} of {tuple(packed.shape)}"
        )


def check_codes(packed: Tensor, rows: int, columns: int, code_book: str, packing: str) -> None:
    """Raise :class:`AbridgedError` if a code is outside the book, or a place after a row's end is not code 0."""
    check_packed(packed, rows, columns, code_book, packing)
    # numpy, which is there already: these are the only ops that loading would need, and torch's would stay in memory
    codes, values = byte_codes(code_book, packing).numpy(), packed.detach().cpu().numpy()
    seen = np.zeros(256, dtype=bool)
    for start in range(0, len(values), CHECKED_AT_A_TIME):
        seen |= np.bincount(values[start : start + CHECKED_AT_A_TIME], minlength=256) > 0
    if (codes[seen] < 0).any():
        raise AbridgedError(f"the packed bytes hold codes that are not {code_book} levels")
    used = columns % codes_per_byte(code_book, packing)
    if used and (codes[values.reshape(rows, -1)[:, -1]][:, used:] != 0).any():
        raise AbridgedError("the packed bytes hold codes after the end of a row")

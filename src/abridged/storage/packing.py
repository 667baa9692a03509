"""Levels to bytes and back: codes of 1 to 8 bits without gaps, or five ternary codes in a byte.

A matrix of levels (rows, columns) becomes a flat uint8 tensor of ``rows * row_bytes`` bytes. Under ``bits``, code i of
a row lies at bits ``i * width`` and on of the row's bytes, the least significant first; under ``base3`` it is digit
``3 ** (i % 5)`` of byte ``i // 5``. Places after a row's last column hold code 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.storage.code_books import (
    BASE3_CODES,
    CODE_BOOKS,
    CODE_WIDTHS,
    check_packing,
    has_zero_points,
    row_bytes,
    unit,
)
from abridged.storage.matrix import Storage

CHECKED_AT_A_TIME = 1 << 16
"""Bytes, which stay in the caches while they are."""
PACKED_AT_A_TIME = 1 << 18
"""Levels, which are int64 while they are summed, in some five copies."""
UNPACKED_AT_A_TIME = 1 << 13
"""Bytes of zero points, each of which takes some sixteen on the way."""


def _place_values(code_book: str, packing: str) -> list[int]:
    """What code 1 at each place of a unit adds to its bytes as one integer."""
    codes, _ = unit(code_book, packing)
    if packing == "base3":
        return [3**place for place in range(codes)]
    return [1 << (CODE_WIDTHS[code_book] * place) for place in range(codes)]


@lru_cache(maxsize=64)
def byte_codes(code_book: str, packing: str) -> Tensor:
    """The codes in every byte value, (256, codes per byte) int64, of those that fill one; invalid places say -1."""
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


def _straddling(units: Any, width: int) -> Iterator[Any]:
    """The codes of `width` bits at each place of units (..., bytes) uint8, of torch or numpy, in order."""
    count = units.shape[-1]
    for place in range(8 * count // width):
        byte, shift = divmod(place * width, 8)
        codes = units[..., byte] >> shift
        if shift + width > 8:
            codes = codes | units[..., byte + 1] << (8 - shift)
        yield codes & ((1 << width) - 1)


def pack(levels: Tensor, code_book: str, packing: str) -> Tensor:
    """Pack levels (rows, columns) of any integer dtype into a flat uint8 tensor on the same device.

    Raises :class:`AbridgedError` for a level outside the code book.
    """
    check_packing(code_book, packing)
    if levels.dim() != 2 or levels.dtype.is_floating_point:
        raise AbridgedError(f"levels must be an integer matrix, not {levels.dtype} of {tuple(levels.shape)}")
    rows, columns = levels.shape
    book = torch.tensor(CODE_BOOKS[code_book], device=levels.device)
    places = torch.tensor(_place_values(code_book, packing), device=levels.device)
    shifts = 8 * torch.arange(unit(code_book, packing)[1], device=levels.device)
    packed = torch.empty(rows, row_bytes(columns, code_book, packing), dtype=torch.uint8, device=levels.device)
    step = max(1, PACKED_AT_A_TIME // max(columns, 1))
    for start in range(0, rows, step):
        part = levels[start : start + step].long()
        codes = torch.searchsorted(book, part).clamp_(max=len(book) - 1)
        if not torch.equal(book[codes], part):
            raise AbridgedError(f"levels outside the {code_book} code book {CODE_BOOKS[code_book]}")
        codes = torch.nn.functional.pad(codes, (0, -columns % len(places)))
        units = (codes.view(len(part), -1, len(places)) * places).sum(dim=2, keepdim=True)
        values = (units >> shifts & 255).view(len(part), -1)
        packed[start : start + step] = values[:, : packed.shape[1]].to(torch.uint8)
    return packed.flatten()


def unpack_rows(packed: Tensor, storage: Storage, dtype: torch.dtype) -> Tensor:
    """Levels of packed rows (n, row_bytes) uint8 of a matrix as (n, columns) in ``dtype``."""
    codes, size = unit(storage.code_book, storage.packing)
    if size == 1:
        table = byte_levels(storage.code_book, storage.packing, dtype, packed.device)
        levels = table.index_select(0, packed.reshape(-1).int())
    else:
        book, width = CODE_BOOKS[storage.code_book], CODE_WIDTHS[storage.code_book]
        units = torch.nn.functional.pad(packed, (0, -packed.shape[1] % size)).view(-1, size)
        places = list(_straddling(units, width))
        levels = torch.empty(len(units), codes, dtype=dtype, device=packed.device)
        for place, found in enumerate(places):
            levels[:, place] = found
        levels += book[0]
    return levels.view(packed.shape[0], -(-packed.shape[1] // size) * codes)[:, : storage.columns]


def unpack(packed: Tensor, storage: Storage) -> Tensor:
    """Levels (rows, columns) of a flat packed tensor, int8, or uint8 where they begin at 0.

    Raises :class:`AbridgedError` if its size is wrong.
    """
    check_packed(packed, storage)
    return unpack_rows(packed.view(storage.rows, -1), storage, level_dtype(storage.code_book)).contiguous()


def level_dtype(code_book: str) -> torch.dtype:
    """The integers that hold a code book's levels."""
    return torch.uint8 if has_zero_points(code_book) else torch.int8


def pack_zeros(zeros: Tensor, code_book: str, packing: str) -> Tensor:
    """Zero points (num_scales,), whole numbers of any type, as a flat uint8 tensor: one row of codes."""
    return pack(zeros.long().view(1, -1), code_book, packing)


def unpack_zeros(packed: Tensor, storage: Storage) -> Tensor:
    """Zero points (num_scales,) FP32 of a flat packed tensor."""
    return zero_levels(packed, storage).float()


def zero_levels(packed: Tensor, storage: Storage) -> Tensor:
    """Zero points (num_scales,) uint8 of a flat packed tensor, made in portions: large ones would stay in memory."""
    codes, size = unit(storage.code_book, storage.packing)
    found = torch.empty(storage.num_scales, dtype=torch.uint8, device=packed.device)
    step = UNPACKED_AT_A_TIME // size * size  # whole units; the last may be begun only
    for start in range(0, len(packed), step):
        part, first = packed[start : start + step], start // size * codes
        here = replace(zeros_of(storage), columns=min(step // size * codes, storage.num_scales - first))
        found[first : first + here.columns] = unpack_rows(part.view(1, -1), here, torch.uint8)[0]
    return found


def zeros_of(storage: Storage) -> Storage:
    """How the zero points of a matrix lie: as the codes of a matrix of one row."""
    return Storage(1, storage.num_scales, storage.code_book, storage.packing, 1)


def check_zeros(zeros: Tensor | None, storage: Storage) -> None:
    """Raise :class:`AbridgedError` unless there are packed zero points where, and only where, there must be."""
    if has_zero_points(storage.code_book) != (zeros is not None):
        without = "has" if zeros is None else "has no"
        raise AbridgedError(f"{storage.code_book} {without} zero points")
    if zeros is not None:
        check_packed(zeros, zeros_of(storage))


def check_packed(packed: Tensor, storage: Storage) -> None:
    """Raise :class:`AbridgedError` unless ``packed`` is a flat uint8 tensor of the right number of bytes."""
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != storage.packed_bytes:
        raise AbridgedError(
            f"{storage.rows}x{storage.columns} {storage.code_book} codes packed as {storage.packing} are "
            f"{storage.packed_bytes} bytes of uint8, not {packed.dtype} of {tuple(packed.shape)}"
        )


def check_codes(packed: Tensor, storage: Storage) -> None:
    """Raise :class:`AbridgedError` if a code is outside the book, or a place after a row's end is not code 0."""
    check_packed(packed, storage)
    rows, columns, code_book, packing = storage.rows, storage.columns, storage.code_book, storage.packing
    # numpy, which is there already: these are the only ops that loading would need, and torch's would stay in memory
    values = packed.detach().cpu().numpy().reshape(rows, -1)
    per_unit, size = unit(code_book, packing)
    used, top = columns % per_unit, len(CODE_BOOKS[code_book])
    if size == 1:
        codes, flat = byte_codes(code_book, packing).numpy(), values.reshape(-1)
        parts = range(0, len(flat) if (codes < 0).any() else 0, CHECKED_AT_A_TIME)  # else no byte can be wrong
        outside = any(_invalid(flat[start : start + CHECKED_AT_A_TIME], code_book, packing) for start in parts)
        beyond = bool(used and (codes[values[:, -1]][:, used:] != 0).any())
    else:
        outside = beyond = False
        step = max(1, CHECKED_AT_A_TIME // values.shape[1])
        for start in range(0, rows, step):
            part = np.pad(values[start : start + step], ((0, 0), (0, -values.shape[1] % size)))
            units = part.reshape(len(part), -1, size)
            for place, found in enumerate(_straddling(units, CODE_WIDTHS[code_book])):
                outside |= bool((found >= top).any())
                beyond |= bool(used and place >= used and found[:, -1].any())
    if outside:
        raise AbridgedError(f"the packed bytes hold codes that are not {code_book} levels")
    if beyond:
        raise AbridgedError("the packed bytes hold codes after the end of a row")


def _invalid(values: Any, code_book: str, packing: str) -> bool:
    """Whether bytes (n,) that hold whole codes have one outside the book."""
    if packing == "base3":
        return bool(values.max() >= 3**BASE3_CODES)
    width = CODE_WIDTHS[code_book]
    assert len(CODE_BOOKS[code_book]) == (1 << width) - 1  # what is missing is the code whose bits are all set
    shift = 1
    while shift < width:
        values = values & values >> shift  # in the lowest bit of each code, whether twice as many of its bits are set
        shift *= 2
    return bool((values & sum(1 << place for place in range(0, 8, width))).any())

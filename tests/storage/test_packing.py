"""Packing levels into bytes: round trips, sizes, and bytes that no packer writes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abridged.core.errors import AbridgedError
from abridged.storage import packing
from abridged.storage.code_books import CODE_BOOKS, CODE_WIDTHS, row_bytes, storage_bits, unit
from abridged.storage.matrix import Storage
from abridged.storage.packing import check_codes, level_dtype, pack, unpack

WAYS = [(book, "bits") for book in CODE_BOOKS] + [("ternary", "base3")]


@st.composite
def matrices(draw):
    code_book, packing = draw(st.sampled_from(WAYS))
    rows, columns, seed = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    book = torch.tensor(CODE_BOOKS[code_book], dtype=torch.int16)
    index = torch.randint(len(book), (rows, columns), generator=torch.Generator().manual_seed(seed))
    return book[index], code_book, packing


@given(matrices())
@settings(deadline=None)
def test_round_trip_and_size(case):
    levels, code_book, packing = case
    rows, columns = levels.shape
    packed = pack(levels, code_book, packing)
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    bits = 1.6 if packing == "base3" else CODE_WIDTHS[code_book]
    assert packed.numel() == rows * math.ceil(columns * bits / 8)
    check_codes(packed, Storage(rows, columns, code_book, packing, 1))
    restored = unpack(packed, Storage(rows, columns, code_book, packing, 1))
    assert restored.dtype == level_dtype(code_book)
    assert torch.equal(restored, levels)


@given(matrices())
@settings(deadline=None)
def test_each_row_packs_alone(case):
    levels, code_book, packing = case
    alone = torch.cat([pack(row[None], code_book, packing) for row in levels])
    assert torch.equal(pack(levels, code_book, packing), alone)


@pytest.mark.parametrize(
    ("code_book", "packing", "levels", "expected"),
    [
        ("binary", "bits", [[1, -1, -1, 1, -1, -1, -1, -1, 1]], [0b00001001, 1]),
        ("ternary", "bits", [[-1, 0, 1, 0]], [0b01100100]),
        ("ternary", "base3", [[1, 0, -1, 0, 1]], [2 + 3 + 0 + 27 + 162]),
        ("quaternary", "bits", [[-3, -1, 1, 3]], [0b11100100]),
        ("int4", "bits", [[-7, 7, 0]], [0xE0, 0x07]),
        ("int8", "bits", [[-127, 0, 127]], [0, 127, 254]),
        ("int3", "bits", [[-3, -2, 3, 0]], [0b10001000, 0b0111]),
        ("int5", "bits", [[-15, 15, -14]], [0b11000000, 0b00000111]),
        ("int6", "bits", [[31, -31, -30, 0, 1]], [0b00111110, 0b00010000, 0b01111100, 0b100000]),
    ],
)
def test_layout(code_book, packing, levels, expected):
    assert pack(torch.tensor(levels), code_book, packing).tolist() == expected


@pytest.mark.parametrize(("code_book", "packing"), WAYS)
def test_a_level_outside_the_book_is_refused(code_book, packing):
    for wrong in (max(CODE_BOOKS[code_book]) + 1, min(CODE_BOOKS[code_book]) - 1):
        with pytest.raises(AbridgedError, match="outside"):
            pack(torch.tensor([[wrong]]), code_book, packing)


@pytest.mark.parametrize(
    ("code_book", "packing", "packed"),
    [
        ("ternary", "bits", [0b11]),
        ("ternary", "base3", [243]),
        ("int4", "bits", [0xF0]),
        ("int8", "bits", [255]),
        ("int3", "bits", [0b11000000, 1, 0]),
        ("int5", "bits", [0, 0, 0, 0, 0b11111000]),
        ("int6", "bits", [0, 0xF0, 0b11]),
    ],
)
def test_bytes_that_are_no_code_are_refused(code_book, packing, packed):
    columns, _ = unit(code_book, packing)
    with pytest.raises(AbridgedError, match="not .* levels"):
        check_codes(torch.tensor(packed, dtype=torch.uint8), Storage(1, columns, code_book, packing, 1))


def test_codes_after_the_end_of_a_row_are_refused():
    with pytest.raises(AbridgedError, match="after the end"):
        check_codes(torch.tensor([0b100], dtype=torch.uint8), Storage(1, 2, "binary", "bits", 1))
    with pytest.raises(AbridgedError, match="after the end"):
        check_codes(torch.tensor([0, 0, 0, 0b10000000], dtype=torch.uint8), Storage(2, 5, "int3", "bits", 1))


def test_wrong_size_and_wrong_names():
    with pytest.raises(AbridgedError, match="2x9 binary codes packed as bits are 4 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), Storage(2, 9, "binary", "bits", 1))
    with pytest.raises(AbridgedError, match="base3"):
        row_bytes(8, "binary", "base3")
    with pytest.raises(AbridgedError, match="unknown code book"):
        row_bytes(8, "int7", "bits")


def test_storage_bits():
    assert [storage_bits(*way) for way in WAYS] == [1, 2, 2, 2, 3, 4, 5, 6, 8, 2, 3, 4, 5, 6, 8, 1.6]


@pytest.mark.parametrize("code_book", ["int5", "ternary"])
def test_rows_are_packed_some_at_a_time_as_at_once(monkeypatch, code_book):
    book = torch.tensor(CODE_BOOKS[code_book], dtype=torch.int16)
    levels = book[torch.randint(len(book), (101, 24))]
    whole = pack(levels, code_book, "bits")
    monkeypatch.setattr(packing, "PACKED_AT_A_TIME", 100)
    assert torch.equal(pack(levels, code_book, "bits"), whole)
    assert torch.equal(unpack(whole, Storage(101, 24, code_book, "bits", 1)).short(), levels)

"""The torch ops that work on packed weights, under ``torch.ops.abridged``, with their reference implementations.

A scale covers ``rows * columns / len(scale)`` consecutive weights of the row-major matrix, and a weight is
``level * scale`` in FP32. The references run on any device and keep no more than a slice of the matrix dequantised
at a time. They have no gradients: packed weights are for inference. A faster kernel is one more ``impl`` of an op.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.checkpoint.packing import check_packed, unpack_rows
from abridged.checkpoint.packing import unpack as unpack_levels

LIBRARY = torch.library.Library("abridged", "DEF")
LIBRARY.define("unpack(Tensor packed, int rows, int columns, str code_book, str packing) -> Tensor")
LIBRARY.define(
    "packed_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias, "
    "int rows, int columns, str code_book, str packing) -> Tensor"
)
LIBRARY.define(
    "packed_embedding(Tensor ids, Tensor packed, Tensor scale, "
    "int rows, int columns, str code_book, str packing) -> Tensor"
)

SLICE_WEIGHTS = 1 << 22
"""Weights that packed_linear dequantises at a time (16 MB in FP32)."""


def _row_scales(scale: Tensor, rows: int) -> Tensor:
    """Scales as (rows, scales for each row), without a copy where a scale covers several rows."""
    if scale.numel() >= rows:
        return scale.view(rows, -1)
    return scale.view(-1, 1, 1).expand(-1, rows // scale.numel(), 1).reshape(rows, 1)


def _dequantize(packed: Tensor, row_scales: Tensor, columns: int, code_book: str, packing: str) -> Tensor:
    """Weights (n, columns) FP32 of n packed rows (n, row_bytes) with their scales (n, k), k of them in each row."""
    levels = unpack_rows(packed, columns, code_book, packing, torch.float32)
    count = row_scales.shape[1]
    if count == 1:
        return levels * row_scales
    return (levels.reshape(len(levels), count, -1) * row_scales[:, :, None]).view(len(levels), columns)


def dequantize(packed: Tensor, scale: Tensor, rows: int, columns: int, code_book: str, packing: str) -> Tensor:
    """The whole matrix (rows, columns) in FP32: ``level * scale``, exactly as it was in training."""
    check_packed(packed, rows, columns, code_book, packing)
    return _dequantize(packed.view(rows, -1), _row_scales(scale.float(), rows), columns, code_book, packing)


def _unpack(packed: Tensor, rows: int, columns: int, code_book: str, packing: str) -> Tensor:
    return unpack_levels(packed, rows, columns, code_book, packing)


def _unpack_fake(packed: Tensor, rows: int, columns: int, code_book: str, packing: str) -> Tensor:
    return packed.new_empty((rows, columns), dtype=torch.int8)


def _packed_linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    check_packed(packed, rows, columns, code_book, packing)
    packed_rows, row_scales = packed.view(rows, -1), _row_scales(scale.float(), rows)
    bias = None if bias is None else bias.to(x.dtype)
    step = max(1, SLICE_WEIGHTS // columns)
    if rows <= step:
        weight = _dequantize(packed_rows, row_scales, columns, code_book, packing)
        return F.linear(x, weight.to(x.dtype), bias).to(x.dtype)  # autocast may have answered in its own
    y = x.new_empty((*x.shape[:-1], rows))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        weight = _dequantize(packed_rows[part], row_scales[part], columns, code_book, packing)
        y[..., part] = F.linear(x, weight.to(x.dtype), None if bias is None else bias[part])
    return y


def _packed_linear_fake(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _packed_embedding(
    ids: Tensor, packed: Tensor, scale: Tensor, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    check_packed(packed, rows, columns, code_book, packing)
    wanted = ids.reshape(-1)
    # index_select checks the ids against the number of rows, on every device
    codes = packed.view(rows, -1).index_select(0, wanted)
    scales = scale.float()
    if scales.numel() >= rows:
        row_scales = scales.view(rows, -1).index_select(0, wanted)
    else:
        row_scales = scales.index_select(0, wanted // (rows // scales.numel()))[:, None]
    return _dequantize(codes, row_scales, columns, code_book, packing).view(*ids.shape, columns)


def _packed_embedding_fake(
    ids: Tensor, packed: Tensor, scale: Tensor, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    return scale.new_empty((*ids.shape, columns), dtype=torch.float32)


for _name, _implementation, _fake in (
    ("unpack", _unpack, _unpack_fake),
    ("packed_linear", _packed_linear, _packed_linear_fake),
    ("packed_embedding", _packed_embedding, _packed_embedding_fake),
):
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"abridged::{_name}", _fake, lib=LIBRARY)

unpack = torch.ops.abridged.unpack
"""``unpack(packed, rows, columns, code_book, packing)`` -> levels (rows, columns) int8."""

packed_linear = torch.ops.abridged.packed_linear
"""``packed_linear(x, packed, scale, bias, rows, columns, code_book, packing)`` -> y (..., rows) in x's dtype.

x: (..., columns), already activation-quantised. packed: flat uint8. scale: (num_scales,). bias: (rows,) or None.
"""

packed_embedding = torch.ops.abridged.packed_embedding
"""``packed_embedding(ids, packed, scale, rows, columns, code_book, packing)`` -> (..., columns) FP32.

Reads and dequantises only the rows that ids (...) name.
"""

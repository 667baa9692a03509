"""The torch ops that work on packed weights, under ``torch.ops.abridged``, with their reference implementations.

A scale covers ``rows * columns / len(scale)`` consecutive weights of the row-major matrix, and a weight is
``level * scale`` in FP32. The references run on any device and keep no more than a slice of the matrix dequantised
at a time. They have no gradients: packed weights are for inference. On CPUs, `kernels.py` serves what it can.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.checkpoint.packing import check_packed, unpack_rows
from abridged.checkpoint.packing import unpack as unpack_levels
from abridged.errors import AbridgedError
from abridged.runtime.activations import level_range, quantize_per_token, quantize_static
from abridged.runtime.kernels import kernels

LIBRARY = torch.library.Library("abridged", "DEF")
LIBRARY.define("unpack(Tensor packed, int rows, int columns, str code_book, str packing) -> Tensor")
LIBRARY.define(
    "packed_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias, "
    "int rows, int columns, str code_book, str packing) -> Tensor"
)
LIBRARY.define(
    "quantized_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias, Tensor? input_scale, "
    "Tensor? input_zero_point, int input_bits, int rows, int columns, str code_book, str packing, "
    "str input_function='identity') -> Tensor"
)
LIBRARY.define(
    "packed_embedding(Tensor ids, Tensor packed, Tensor scale, "
    "int rows, int columns, str code_book, str packing) -> Tensor"
)

INPUT_FUNCTIONS = ("identity", "gelu_tanh", "gelu")
"""What quantized_linear can do to its input before it rounds it."""

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


def check_function(name: str) -> None:
    """Raise AbridgedError unless `name` is a function that a linear layer's input can pass."""
    if name not in INPUT_FUNCTIONS:
        raise AbridgedError(f"no input function {name!r}; known are {', '.join(INPUT_FUNCTIONS)}")


def apply_function(x: Tensor, name: str) -> Tensor:
    """x, or in FP32 what becomes of it."""
    check_function(name)
    return x if name == "identity" else F.gelu(x.float(), approximate="tanh" if name == "gelu_tanh" else "none")


def _quantized_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    input_bits: int,
    rows: int,
    columns: int,
    code_book: str,
    packing: str,
    input_function: str = "identity",
) -> Tensor:
    levels, dtype = level_range(input_bits, input_zero_point is None), x.dtype
    x = apply_function(x, input_function)
    if input_scale is None:
        x = quantize_per_token(x, levels[1])
    else:
        x = quantize_static(x, input_scale, input_zero_point, *levels)
    return _packed_linear(x.to(dtype), packed, scale, bias, rows, columns, code_book, packing)


def _quantized_linear_cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    input_bits: int,
    rows: int,
    columns: int,
    code_book: str,
    packing: str,
    input_function: str = "identity",
) -> Tensor:
    compiled = kernels()
    storage = (rows, columns, code_book, packing)
    if input_bits == 1 and input_scale is not None:  # two values, which rounding to 8 bits by token leaves as they are
        levels = level_range(1, input_zero_point is None)
        x = quantize_static(apply_function(x, input_function), input_scale, input_zero_point, *levels).to(x.dtype)
        input_scale, input_zero_point, input_bits, input_function = None, None, 8, "identity"
    if compiled is None or not compiled.serves_linear(x, scale.numel(), *storage):
        return _quantized_linear(
            x, packed, scale, bias, input_scale, input_zero_point, input_bits, *storage, input_function
        )
    check_packed(packed, *storage)
    _check_operands(x, packed, scale, bias, input_scale, input_zero_point, input_bits, rows, columns)
    check_function(input_function)
    scale = scale.float()
    bias = None if bias is None else bias.float().contiguous()
    return compiled.linear(x, packed, scale, bias, input_scale, input_zero_point, input_bits, *storage, input_function)


def _check_operands(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    input_bits: int,
    rows: int,
    columns: int,
) -> None:
    """Raise AbridgedError unless everything is of the size and type that a kernel will read."""
    count = scale.numel()
    if count > rows:
        divides = count % rows == 0 and columns % (count // rows) == 0
    else:
        divides = count > 0 and rows % count == 0
    faults = {
        f"x ends in {x.shape[-1] if x.dim() else 0} columns": x.dim() == 0 or x.shape[-1] != columns,
        f"{count} scales do not divide the matrix": not divides or not scale.is_contiguous(),
        "the codes are not contiguous": not packed.is_contiguous(),
        "the bias is of another size": bias is not None and bias.shape != (rows,),
        "the input's scale is not one FP32 number": input_scale is not None
        and (input_scale.numel() != 1 or input_scale.dtype != torch.float32),
        "the input's zero point is not one 32-bit integer": input_zero_point is not None
        and (input_scale is None or input_zero_point.numel() != 1 or input_zero_point.dtype != torch.int32),
        f"inputs of {input_bits} bits": not 2 <= input_bits <= 8,
    }
    for fault, found in faults.items():
        if found:
            raise AbridgedError(f"quantized_linear of {rows}x{columns}: {fault}")


def _quantized_linear_fake(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    input_bits: int,
    rows: int,
    columns: int,
    code_book: str,
    packing: str,
    input_function: str = "identity",
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


def _packed_embedding_cpu(
    ids: Tensor, packed: Tensor, scale: Tensor, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    compiled = kernels()
    if compiled is None:
        return _packed_embedding(ids, packed, scale, rows, columns, code_book, packing)
    check_packed(packed, rows, columns, code_book, packing)
    if ids.dtype not in (torch.int64, torch.int32) or not packed.is_contiguous():
        raise AbridgedError(f"packed_embedding takes 64- or 32-bit ids and contiguous codes, not {ids.dtype}")
    return compiled.embedding(ids, packed, scale.float().contiguous(), rows, columns, code_book, packing)


def _packed_embedding_fake(
    ids: Tensor, packed: Tensor, scale: Tensor, rows: int, columns: int, code_book: str, packing: str
) -> Tensor:
    return scale.new_empty((*ids.shape, columns), dtype=torch.float32)


for _name, _implementation, _fake in (
    ("unpack", _unpack, _unpack_fake),
    ("packed_linear", _packed_linear, _packed_linear_fake),
    ("quantized_linear", _quantized_linear, _quantized_linear_fake),
    ("packed_embedding", _packed_embedding, _packed_embedding_fake),
):
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"abridged::{_name}", _fake, lib=LIBRARY)
LIBRARY.impl("quantized_linear", _quantized_linear_cpu, "CPU")
LIBRARY.impl("packed_embedding", _packed_embedding_cpu, "CPU")

unpack = torch.ops.abridged.unpack
"""``unpack(packed, rows, columns, code_book, packing)`` -> levels (rows, columns) int8."""

packed_linear = torch.ops.abridged.packed_linear
"""``packed_linear(x, packed, scale, bias, rows, columns, code_book, packing)`` -> y (..., rows) in x's dtype.

x: (..., columns), already activation-quantised. packed: flat uint8. scale: (num_scales,). bias: (rows,) or None.
"""

quantized_linear = torch.ops.abridged.quantized_linear
"""``quantized_linear(x, packed, scale, bias, input_scale, input_zero_point, input_bits, rows, columns, …)`` ->
y (..., rows) in x's dtype: `packed_linear` of x (..., columns) after `input_function` and rounding to integers of
`input_bits`.

input_scale: (1,) FP32, or None to round each token by its own largest value. input_zero_point: (1,) int32, or None for
a symmetric range.
"""

packed_embedding = torch.ops.abridged.packed_embedding
"""``packed_embedding(ids, packed, scale, rows, columns, code_book, packing)`` -> (..., columns) FP32.

Reads and dequantises only the rows that ids (...) name.
"""

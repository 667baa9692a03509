"""Packed matrices on GPUs, in Triton: rounding inputs, the product, and rows of an embedding or of all the matrix.

Each kernel reads codes where the checkpoint has them and turns them into levels on the way (`_codes`), so that nothing
is unpacked to keep. Products are of levels: whole numbers that int8, bf16 and fp16 hold exactly, scaled once a row or
once a group.

Imported by the first call that needs it, since Triton decides then whether it compiles or, with TRITON_INTERPRET=1,
interprets, which is how the tests run it on a CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.runtime.activations import INPUT_FUNCTIONS, SMALLEST_SCALE, Rounding, check_function, level_range
from abridged.runtime.kernels import fault
from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS, CODE_WIDTHS
from abridged.storage.matrix import Storage

TYPES = (torch.float32, torch.bfloat16, torch.float16)
SMALLEST_STEP = 32
"""Columns that tensor cores take at a time of 8 bits: groups are served that are a multiple of it."""
LARGEST_STEP = 64
"""Columns at a time where a scale covers a row or more."""
FEW = 16
"""Tokens up to which reading the weights is what takes the time."""
UNPACKED_FROM = 1024
"""Tokens from which a matrix is unpacked first, for the vendor's product, where inputs are not rounded (as AutoAWQ)."""


def serves(storage: Storage) -> bool:
    """Whether `Weight` takes such a matrix for products; rows are read of any."""
    return storage.groups == 1 or storage.columns // storage.groups % SMALLEST_STEP == 0


class Weight(NamedTuple):
    """A packed matrix as the kernels take it."""

    packed: PackedWeight
    scales: Tensor
    layout: dict[str, int | bool]

    @classmethod
    def of(cls, packed: PackedWeight) -> Weight:
        """Raises AbridgedError unless codes, scales and zero points are as their storage says."""
        packed.check()
        if not packed.codes.is_contiguous():
            raise AbridgedError(f"a matrix of {packed.storage.rows}x{packed.storage.columns}: codes are not contiguous")
        return cls(packed, packed.scales.float().contiguous(), _layout(packed.storage))

    def linear(self, x: Tensor, bias: Tensor | None, rounding: Rounding | None, function: str) -> Tensor:
        """``round(function(x)) W^T + bias`` (..., rows) of x (..., columns), in its type, which is one of TYPES."""
        storage = self.packed.storage
        check_function(function)
        wrong = fault(storage, x, bias, rounding or Rounding(8), fewest_bits=1)
        if wrong is not None:
            raise AbridgedError(f"a packed layer of {storage.rows}x{storage.columns}: {wrong}")
        if INTERPRETED and x.dtype == torch.bfloat16:
            return self.linear(x.float(), bias, rounding, function).to(x.dtype)
        flat = x.reshape(-1, storage.columns).contiguous()
        tokens = len(flat)
        y = x.new_empty((*x.shape[:-1], storage.rows))
        if not tokens:
            return y
        x_scales = None
        if rounding is not None:
            flat, x_scales = round_tokens(flat, rounding, function, self._levels_type(rounding))
        elif function != "identity":
            flat = F.gelu(flat.float(), approximate="tanh" if function == "gelu_tanh" else "none").to(x.dtype)
        if rounding is None and tokens >= UNPACKED_FROM:
            return F.linear(flat, self.unpack(x.dtype), None if bias is None else bias.to(x.dtype)).view(y.shape)
        tensors = (flat, self.packed.codes, self.scales, self.packed.zeros, bias, x_scales, y)
        _launch_linear(tensors, tokens, self.layout)
        return y

    def embedding(self, ids: Tensor) -> Tensor:
        """Rows of ids (...) as (..., columns) FP32. Raises IndexError for an id that is no row (on a GPU: later)."""
        rows = self.packed.storage.rows
        fits = ((ids >= 0) & (ids < rows)).all()
        if not ids.is_cuda and not bool(fits):
            raise IndexError(f"an id is outside the {rows} rows of the embedding")
        if ids.is_cuda:
            torch._assert_async(fits, f"an id is outside the {rows} rows of the embedding")
        return self._rows(ids.contiguous(), ids.shape, torch.float32)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole matrix (rows, columns)."""
        return self._rows(None, (self.packed.storage.rows,), dtype)

    def _rows(self, ids: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if INTERPRETED and dtype == torch.bfloat16:
            return self._rows(ids, shape, torch.float32).to(dtype)
        y = torch.empty((*shape, self.packed.storage.columns), dtype=dtype, device=self.packed.codes.device)
        if y.numel():
            block = min(1024, triton.next_power_of_2(y.shape[-1]))
            grid = (y.numel() // y.shape[-1], triton.cdiv(y.shape[-1], block))
            _rows[grid](ids, self.packed.codes, self.scales, self.packed.zeros, y, **self.layout, BLOCK=block)
        return y

    def _levels_type(self, rounding: Rounding) -> torch.dtype:
        """int8 where both factors fit; bf16, which has whole numbers up to 256, where one reaches to 255."""
        symmetric = rounding.zero_point is None
        if symmetric and self.packed.storage.code_book != "uint8":
            return torch.int8
        return torch.float32 if INTERPRETED else torch.bfloat16


def _layout(storage: Storage) -> dict[str, int | bool]:
    """What the kernels are compiled for. A level is ``code * STEP + FIRST``; a width of 0 stands for five in a byte."""
    book = CODE_BOOKS[storage.code_book]
    return {
        "ROWS": storage.rows,
        "COLUMNS": storage.columns,
        "ROW_BYTES": storage.row_bytes,
        "GROUPS": storage.groups,
        "ROWS_PER_SCALE": max(1, storage.rows // storage.num_scales),
        "WIDTH": 0 if storage.packing == "base3" else CODE_WIDTHS[storage.code_book],
        "FIRST": book[0],
        "STEP": book[1] - book[0],
    }


@triton.jit
def _codes(row, place, mask, WIDTH: tl.constexpr):
    """Codes at places of a packed row that begins at `row`; 0 where the mask says no. See `storage.packing`."""
    if WIDTH == 0:
        byte = tl.load(row + place // 5, mask=mask, other=0).to(tl.int32)
        digit = place % 5
        power = tl.where(digit < 2, tl.where(digit == 0, 1, 3), tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81)))
        code = byte // power % 3
    else:
        bit = place * WIDTH
        shift = bit & 7
        code = tl.load(row + (bit >> 3), mask=mask, other=0).to(tl.int32)
        if 8 % WIDTH != 0:  # some codes end in the next byte
            code |= tl.load(row + (bit >> 3) + 1, mask=mask & (shift + WIDTH > 8), other=0).to(tl.int32) << 8
        code = (code >> shift) & ((1 << WIDTH) - 1)
    return code


@triton.jit
def _linear(
    x, codes, scales, zeros, bias, x_scales, y, tokens,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_BYTES: tl.constexpr, GROUPS: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """y (tokens, ROWS) = x W^T + bias. x: (tokens, COLUMNS) as it is, or levels with their x_scales (tokens,)."""
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_token, is_row = token < tokens, row < ROWS
    token, row = token.to(tl.int64), row.to(tl.int64)
    first_scale = row // ROWS_PER_SCALE * GROUPS
    total = tl.full((BLOCK_TOKENS, BLOCK_ROWS), 0, tl.float32)
    for start in range(0, COLUMNS, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        is_column = column < COLUMNS
        a = tl.load(x + token[:, None] * COLUMNS + column, mask=is_token[:, None] & is_column, other=0)
        level = _codes(codes + row * ROW_BYTES, column[:, None], is_column[:, None] & is_row, WIDTH) * STEP + FIRST
        scale = first_scale + start // (COLUMNS // GROUPS)  # a block of columns never reaches into a second group
        if zeros is not None:
            level -= _codes(zeros, scale, is_row, WIDTH)
        part = tl.dot(a, level.to(a.dtype), input_precision="ieee").to(tl.float32)
        if GROUPS > 1:
            part *= tl.load(scales + scale, mask=is_row, other=0)
        total += part
    if GROUPS == 1:
        total *= tl.load(scales + first_scale, mask=is_row, other=0)
    if x_scales is not None:
        total *= tl.load(x_scales + token, mask=is_token, other=0)[:, None]
    if bias is not None:
        total += tl.load(bias + row, mask=is_row, other=0).to(tl.float32)
    tl.store(y + token[:, None] * ROWS + row, total.to(y.dtype.element_ty), mask=is_token[:, None] & is_row)


@triton.jit
def _rows(
    ids, codes, scales, zeros, y,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ROW_BYTES: tl.constexpr, GROUPS: tl.constexpr,
    ROWS_PER_SCALE: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y (n, COLUMNS) = the rows of ids (n,), or all of them, one each program and block of columns."""
    number = tl.program_id(0).to(tl.int64)
    row = number
    if ids is not None:  # whoever calls reports those that are no row
        row = tl.minimum(tl.maximum(tl.load(ids + number).to(tl.int64), 0), ROWS - 1)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = column < COLUMNS
    level = _codes(codes + row * ROW_BYTES, column, is_column, WIDTH) * STEP + FIRST
    scale = row // ROWS_PER_SCALE * GROUPS + column // (COLUMNS // GROUPS)
    if zeros is not None:
        level -= _codes(zeros, scale, is_column, WIDTH)
    value = level.to(tl.float32) * tl.load(scales + scale, mask=is_column, other=0)
    tl.store(y + number * COLUMNS + column, value.to(y.dtype.element_ty), mask=is_column)


@triton.jit
def _round(
    x, levels, x_scales, scale, zero_point,
    COLUMNS: tl.constexpr, FUNCTION: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One token a program: what `Rounding.apply` rounds to, as levels and their scale; a scale of NaN where one is."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    v = tl.load(x + token * COLUMNS + column, mask=column < COLUMNS, other=0).to(tl.float32)
    if FUNCTION == 1:  # gelu_tanh, by tanh(u) = 2 sigmoid(2u) - 1
        v *= 1 / (1 + tl.exp(-2 * 0.7978845608028654 * (v + 0.044715 * v * v * v)))
    elif FUNCTION == 2:  # gelu
        v *= 0.5 * (1 + tl.erf(v * 0.7071067811865476))
    if scale is None:
        step = tl.maximum(tl.div_rn(tl.max(tl.abs(v), 0), HIGH * 1.0), SMALLEST)
    else:
        step = tl.load(scale)
    level = tl.div_rn(v, step + tl.full((BLOCK,), 0, tl.float32))
    is_nan = tl.max((level != level).to(tl.int32), 0)
    if LOW == -1:
        level = tl.where(level < 0, -1.0, 1.0)
    else:
        level = tl.minimum(tl.maximum(level, -65536.0), 65536.0) + 12582912.0  # 1.5 * 2^23: rounds to even
        level -= 12582912.0
        if zero_point is not None:
            level += tl.load(zero_point)
        level = tl.minimum(tl.maximum(level, LOW), HIGH)
        if zero_point is not None:
            level -= tl.load(zero_point)
    tl.store(levels + token * COLUMNS + column, level.to(levels.dtype.element_ty), mask=column < COLUMNS)
    tl.store(x_scales + token, tl.where(is_nan > 0, float("nan"), step))


def round_tokens(x: Tensor, rounding: Rounding, function: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Levels (tokens, columns) in ``dtype`` and scales (tokens,) FP32 of x (tokens, columns)."""
    levels, scales = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), dtype=torch.float32)
    low, high = level_range(rounding.bits, rounding.zero_point is None)
    sizes = {"COLUMNS": x.shape[1], "BLOCK": triton.next_power_of_2(x.shape[1])}
    sizes |= {"FUNCTION": INPUT_FUNCTIONS.index(function), "LOW": low, "HIGH": high, "SMALLEST": SMALLEST_SCALE}
    _round[(len(x),)](x, levels, scales, rounding.scale, rounding.zero_point, **sizes)
    return levels, scales


#: The interpreter takes bf16 for the integers that its bits are, and is given FP32.
INTERPRETED = not isinstance(_linear, triton.runtime.JITFunction)


def _configs(*sizes: tuple[int, int, int]) -> list[Any]:
    return [
        triton.Config({"BLOCK_TOKENS": tokens, "BLOCK_ROWS": rows}, num_warps=warps) for tokens, rows, warps in sizes
    ]


def _tuned(configs: list[Any]) -> Any:
    """The kernel with the fastest of some sizes of blocks, found at the first call of each shape; the interpreter,
    which measures nothing, takes the largest."""
    configs = configs[-1:] if INTERPRETED else configs
    return triton.autotune(configs, key=["ROWS", "COLUMNS", "GROUPS", "WIDTH"])(_linear)


#: Few tokens: narrow blocks of rows, so that even a small matrix is read by many processors at once.
_few = _tuned(_configs((16, 16, 2), (16, 32, 4), (16, 64, 4)))
_many = _tuned(_configs((64, 64, 4), (32, 64, 4), (128, 64, 8), (64, 128, 8)))


def _launch_linear(tensors: tuple[Tensor | None, ...], tokens: int, layout: dict[str, Any]) -> None:
    kernel = _few if tokens <= FEW else _many
    group = layout["COLUMNS"] // layout["GROUPS"]
    step = LARGEST_STEP if layout["GROUPS"] == 1 else min(LARGEST_STEP, group & -group)

    def grid(sizes: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(layout["ROWS"], sizes["BLOCK_ROWS"]), triton.cdiv(tokens, sizes["BLOCK_TOKENS"])

    kernel[grid](*tensors, tokens, **layout, BLOCK_COLUMNS=step)

"""Codes and scales in the block types of GGUF: weights in runs of a fixed length, each with scales in FP16 of its own.

Every type here holds a code book of ours code for code; what may change is the scale, when it is rounded to FP16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
Scales = NDArray[np.float16]


@dataclass(frozen=True)
class BlockType:
    """A type of GGUF: `size` weights to a block, and how (blocks, size) levels with (blocks,) scales become bytes.

    Where it has `minima`, (blocks,) of what stands for level 0 come too.
    """

    name: str
    size: int
    encode: Callable[..., Codes]
    minima: bool = False


def _bytes_of(scale: Scales) -> Codes:
    return np.ascontiguousarray(scale, dtype="<f2").view(np.uint8).reshape(len(scale), 2)


def _tq2_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    """Two halves of 128; in each, byte j holds the codes of weights j, j + 32, j + 64 and j + 96."""
    codes = (levels + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return np.concatenate([packed.reshape(-1, 64), _bytes_of(scale)], axis=1)


def _digits(codes: NDArray[np.uint16], width: int, count: int) -> Codes:
    """`count` base-3 digits of weights `width` apart, as the fraction of 256 that gives them up from the top."""
    powers = np.array([81, 27, 9, 3, 1][:count], dtype=np.uint16).reshape(1, 1, count, 1)
    values = (codes.reshape(len(codes), -1, count, width) * powers).sum(axis=2, dtype=np.uint16)
    return ((values.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8).reshape(len(codes), -1)


def _tq1_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    """Five weights to a byte for the first 240, four for the last 16."""
    codes = (levels + 1).astype(np.uint16)
    parts = [_digits(codes[:, :160], 32, 5), _digits(codes[:, 160:240], 16, 5), _digits(codes[:, 240:], 4, 4)]
    return np.concatenate([*parts, _bytes_of(scale)], axis=1)


def _q2_k(levels: NDArray[np.int8], scale: Scales) -> Codes:
    """d·2·code - d·3: the type has 4-bit factors for every 16 weights, here 2 for the scale and 3 for the minimum."""
    codes = ((levels + 3) // 2).astype(np.uint8).reshape(-1, 2, 4, 32)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    factors = np.full((len(levels), 16), 3 << 4 | 2, dtype=np.uint8)
    return np.concatenate([factors, packed.reshape(-1, 64), _bytes_of(scale), _bytes_of(scale)], axis=1)


def _q2_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    """Codes of levels from -1 on, four to a byte, the first lowest."""
    codes = (levels + 1).astype(np.uint8).reshape(-1, 16, 4)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return np.concatenate([_bytes_of(scale), packed], axis=1)


def _q1_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    return np.concatenate([_bytes_of(scale), np.packbits(levels > 0, axis=1, bitorder="little")], axis=1)


def _q4_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    codes = (levels + 8).astype(np.uint8)
    return np.concatenate([_bytes_of(scale), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def _q5_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    """The fifth bits of all codes come first, in four bytes."""
    codes = (levels + 16).astype(np.uint8)
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate([_bytes_of(scale), fifth, codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4], axis=1)


def _q4_1(levels: NDArray[np.uint8], scale: Scales, minimum: Scales) -> Codes:
    return np.concatenate([_bytes_of(scale), _bytes_of(minimum), levels[:, :16] | levels[:, 16:] << 4], axis=1)


def _q5_1(levels: NDArray[np.uint8], scale: Scales, minimum: Scales) -> Codes:
    fifth, rest = np.packbits(levels >> 4, axis=1, bitorder="little"), (levels & 15).astype(np.uint8)
    return np.concatenate([_bytes_of(scale), _bytes_of(minimum), fifth, rest[:, :16] | rest[:, 16:] << 4], axis=1)


def _q8_0(levels: NDArray[np.int8], scale: Scales) -> Codes:
    return np.concatenate([_bytes_of(scale), levels.view(np.uint8)], axis=1)


TQ2_0, TQ1_0 = BlockType("TQ2_0", 256, _tq2_0), BlockType("TQ1_0", 256, _tq1_0)
Q2_0 = BlockType("Q2_0", 64, _q2_0)
Q4_0, Q8_0 = BlockType("Q4_0", 32, _q4_0), BlockType("Q8_0", 32, _q8_0)
Q4_1 = BlockType("Q4_1", 32, _q4_1, minima=True)

TERNARY = {kind.name: kind for kind in (TQ2_0, TQ1_0, Q2_0)}
"""The types that hold ternary codes; the last has a fourth level, which they leave alone."""

BLOCK_TYPES: dict[str, BlockType] = {
    "binary": BlockType("Q1_0", 128, _q1_0),
    "ternary": TQ2_0,
    "quaternary": BlockType("Q2_K", 256, _q2_k),
    "q2_0": Q2_0,
    "int3": Q4_0,
    "int4": Q4_0,
    "int5": BlockType("Q5_0", 32, _q5_0),
    "int6": Q8_0,
    "int8": Q8_0,
    "uint2": Q4_1,
    "uint3": Q4_1,
    "uint4": Q4_1,
    "uint5": BlockType("Q5_1", 32, _q5_1, minima=True),
}
"""The type that holds each code book; GGUF has none of 6 and 8 bits with zero points."""


def encode(
    levels: NDArray[Any], scale: NDArray[np.float32], kind: BlockType, zero: NDArray[np.float32] | None = None
) -> Codes:
    """A matrix in blocks: levels (rows, columns), scale (rows, n) of which each covers columns / n; (rows, bytes).

    zero: (rows, n) zero points, for a kind with minima, which are rounded to FP16. A block may not reach over two
    scales: columns / n is a multiple of `kind.size`.
    """
    rows, columns = levels.shape
    blocks = columns // kind.size
    scales = np.repeat(scale.astype(np.float16), blocks // scale.shape[1], axis=1)
    runs = [scales.reshape(-1)]
    if zero is not None:
        minima = np.repeat((-zero * scale).astype(np.float16), blocks // scale.shape[1], axis=1)
        runs.append(minima.reshape(-1))
    return kind.encode(levels.reshape(-1, kind.size), *runs).reshape(rows, -1)

"""Unit vectors as they are stored, and their cosines with a query.

`float16` and `int8` are scanned as they are. `binary` is scanned as signs, one bit a value, by Hamming distance; the
best by that are scored by the query's values against the bits (Yamada et al., ACL 2021, arXiv:2106.00882), and the best
by that by int8 values that stay on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

KINDS = ("float16", "int8", "binary")
#: Vectors that are turned into FP32 at once: they stay in the processor's cache.
_AT_ONCE = 512


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (…, width) of length 1, FP32; what has no length stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float32).tiny)


def quantized(vectors: np.ndarray, kind: str) -> np.ndarray:
    """Unit vectors (n, width) as they are stored: `float16`, `int8`, or `binary`, their signs, eight in a uint8.

    An int8 vector is in steps of its own, the largest value being 127, as usearch casts each by itself: a cosine does
    not ask how long a vector is, so no scale is kept. Bits are sentence-transformers' "ubinary".
    """
    if kind == "float16":
        return vectors.astype("<f2")
    if kind == "int8":
        top = np.abs(vectors).max(axis=-1, keepdims=True)
        return np.rint(vectors * (127 / np.maximum(top, 1e-12))).astype(np.int8)
    return np.packbits(vectors > 0, axis=-1)


def encode(vectors: np.ndarray, kind: str) -> bytes:
    """The bytes of `quantized`."""
    return quantized(vectors, kind).tobytes()


def size(width: int, kind: str) -> int:
    """Bytes of a stored vector."""
    return {"float16": 2 * width, "int8": width, "binary": -(-width // 8)}[kind]


def decode(data: bytes, width: int, kind: str, some: np.ndarray | slice = slice(None)) -> np.ndarray:
    """The unit vectors (n, width), FP32, that `encode` stored as float16 or int8; `some` of them by number."""
    return unit(np.frombuffer(data, "<f2" if kind == "float16" else np.int8).reshape(-1, width)[some])


class Matrix:
    """Vectors in memory, as they are scanned: what was stored as float16 in FP32, which is several times quicker.

    Attributes:
        values: (n, width) FP32 or int8, or (n, words) uint64 of bits.
        width: values of a vector.
    """

    def __init__(self, blobs: Sequence[bytes], width: int, kind: str) -> None:
        """Of what `encode` made."""
        self.width, self.kind = width, kind
        self.values: np.ndarray
        if kind == "float16":
            count = sum(map(len, blobs)) // (2 * width)
            self.values, done = np.empty((count, width), np.float32), 0
            for blob in blobs:
                some = decode(blob, width, kind)
                self.values[done : done + len(some)] = some
                done += len(some)
        elif kind == "int8":
            self.values = np.frombuffer(b"".join(blobs), np.int8).reshape(-1, width)
            squares = [np.einsum("ij,ij->i", some, some) for some in self._in_fp32()]
            self._lengths = np.sqrt(np.concatenate([np.zeros(0, np.float32), *squares])) + 1e-12
        else:
            bits = np.frombuffer(b"".join(blobs), np.uint8).reshape(-1, -(-width // 8))
            self.values = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)

    def scores(self, query: np.ndarray) -> np.ndarray:
        """(n,) FP32: the cosine of each vector with the unit vector `query`; of bits an estimate of it, the cosine of
        the angle that the share of unlike signs stands for (Charikar, STOC 2002)."""
        if self.kind == "float16":
            return self.values @ query
        if self.kind == "int8":
            found = [some @ query for some in self._in_fp32()]
            return np.concatenate([np.zeros(0, np.float32), *found]) / self._lengths
        signs = np.packbits(query > 0)
        word = np.pad(signs, (0, -len(signs) % 8)).view(np.uint64)
        unlike = np.bitwise_count(self.values ^ word).sum(axis=-1)
        return np.cos(np.pi / self.width * unlike.astype(np.float32))

    def signs(self, query: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(numbers,) FP32: of some vectors, as bits, the sum of the query's values by their signs: it
        tells more than whether signs are unlike."""
        bits = np.unpackbits(self.values[numbers].view(np.uint8), axis=-1, count=self.width)
        return (2 * bits.astype(np.float32) - 1) @ query

    def _in_fp32(self) -> Iterator[np.ndarray]:
        """The values, some at a time, each time in the same memory."""
        room = np.empty((_AT_ONCE, self.width), np.float32)
        for start in range(0, len(self.values), _AT_ONCE):
            some = self.values[start : start + _AT_ONCE]
            np.copyto(room[: len(some)], some)
            yield room[: len(some)]

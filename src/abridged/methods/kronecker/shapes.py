"""Which factors a matrix may be split into; torch is not needed to say so."""

from __future__ import annotations

from abridged.errors import AbridgedError
from abridged.runtime.factors import Factors


def factors_of(rows: int, columns: int, right: tuple[int, int], rank: int, fused: int, name: str) -> Factors:
    """The factors of a matrix (rows, columns) whose right one is `right`, for each of `fused` blocks of rows.

    Raises AbridgedError where `right` does not divide the block, offering what does, or where the rank is above what
    reproduces the matrix exactly.
    """
    block = rows // fused
    for size, divisor, what in ((block, right[0], "rows"), (columns, right[1], "columns")):
        if divisor > size:
            raise AbridgedError(
                f"{name} is {block}x{columns}: a factor of {right[0]}x{right[1]} is larger than the matrix"
            )
        if size % divisor:
            offered = " or ".join(map(str, nearest_divisors(size, divisor)))
            raise AbridgedError(
                f"{name} has {size} {what}, which {divisor} does not divide: the nearest that do are {offered}"
            )
    left = (block // right[0], columns // right[1])
    most = min(left[0] * left[1], right[0] * right[1])
    if rank > most:
        raise AbridgedError(
            f"{name}: rank {rank} is above {most}, with which {left[0]}x{left[1]} ⊗ {right[0]}x{right[1]} is exact"
        )
    return Factors(left, right, rank, fused)


def nearest_divisors(size: int, wanted: int) -> list[int]:
    """The divisors of `size` next below and next above `wanted`."""
    below = next(d for d in range(wanted, 0, -1) if size % d == 0)
    above = next(d for d in range(wanted, size + 1) if size % d == 0)
    return sorted({below, above})


def right_size(factor: float, rank: int) -> int:
    """Entries of the right factor with which `rank` terms have `factor` times fewer parameters than the matrix.

    Raises AbridgedError where that is no whole number.
    """
    size = factor * rank
    if abs(size - round(size)) > 1e-6 or round(size) < 2:
        raise AbridgedError(
            f"methods.kronecker: factor {factor:g} at rank {rank} asks for a right factor of {size:g} entries; factor "
            "times rank must be a whole number above 1"
        )
    return round(size)


def low_rank(rows: int, columns: int, factor: float, name: str) -> int:
    """Terms of a product of low rank, (rows, r) by (r, columns), with `factor` times fewer parameters."""
    rank = int(rows * columns / (factor * (rows + columns)))
    if rank < 1:
        raise AbridgedError(f"{name} is {rows}x{columns}: a factor of {factor:g} leaves no rank at all")
    return rank

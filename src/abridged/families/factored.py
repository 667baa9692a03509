"""The anatomy of a model some of whose matrices are factored: the factors stand in the matrices' places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from abridged.families.anatomy import Anatomy, Matrix
from abridged.runtime.kronecker import Factored

#: A factor this many times smaller than the other is not listed: it stays in full precision and costs next to nothing.
NEGLIGIBLE = 64


def refined(anatomy: Anatomy, model: Any) -> Anatomy:
    """`anatomy` with every factored matrix replaced by its factors, each with the whole in `factor_of`."""
    if not any(isinstance(module, Factored) for module in model.modules()):
        return anatomy
    matrices: list[Matrix] = []
    for matrix in anatomy.matrices:
        module = model.get_submodule(matrix.name)
        matrices += _factors(matrix, module) if isinstance(module, Factored) else [matrix]
    return replace(anatomy, matrices=matrices)


def _factors(matrix: Matrix, module: Factored) -> Iterator[Matrix]:
    """The factors of one matrix; the one that meets the input has its range, the other one any."""
    factors = module.factors
    shapes = {"left": factors.left_weight, "right": factors.right_weight}
    sizes = {side: rows * columns for side, (rows, columns) in shapes.items()}
    listed = [side for side in shapes if sizes[side] * NEGLIGIBLE > max(sizes.values())]
    first = "left" if factors.left_first else "right"
    for path, _ in module.pairs():
        prefix = f".{path}." if path else "."
        for side in listed:
            is_row = matrix.kind == "embedding" and side == "left"
            yield replace(
                matrix,
                name=f"{matrix.name}{prefix}{side}",
                kind="embedding" if is_row else "linear",
                rows=shapes[side][0],
                columns=shapes[side][1],
                transposed=False,
                fused=1,
                tied=tuple(f"{reader}{prefix}{side}" for reader in matrix.tied),
                input=matrix.input if side == first else "symmetric",
                factor_of=matrix,
            )

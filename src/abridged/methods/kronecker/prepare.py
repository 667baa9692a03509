"""Puts factored modules into a model, made of the weights that are there."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.errors import AbridgedError
from abridged.methods.kronecker.decomposition import nearest, random
from abridged.methods.kronecker.method import PARTS, Kronecker
from abridged.methods.kronecker.shapes import factors_of, low_rank, right_size
from abridged.runtime.factors import Factors
from abridged.runtime.kronecker import Factored, build_factored, layout

if TYPE_CHECKING:
    from abridged.families import Anatomy, Matrix


def prepare(model: nn.Module, anatomy: Anatomy, settings: Kronecker) -> None:
    """See `Kronecker.prepare`."""
    matrices = chosen(anatomy, settings)
    choices = {matrix.name: candidates(matrix, settings) for matrix in matrices}  # all, before anything changes
    for matrix in matrices:
        module = model.get_submodule(matrix.name)
        if isinstance(module, Factored):
            check_same(module, choices[matrix.name], matrix.name)
        else:
            install(model, matrix, choices[matrix.name], settings.initialization)


def chosen(anatomy: Anatomy, settings: Kronecker) -> list[Matrix]:
    """The anatomy's whole matrices that the settings ask for.

    Raises AbridgedError for a layer, a part or a path that the model does not have, and for a tied head alone.
    """
    wholes = anatomy.whole
    if isinstance(settings.layers, list):
        beyond = [layer for layer in settings.layers if not 0 <= layer < anatomy.layers]
        if beyond:
            raise AbridgedError(
                f"methods.kronecker.layers has {beyond[0]}, but the model's layers end at {anatomy.layers - 1}"
            )
    tied = {path for matrix in wholes for path in matrix.tied}
    for pattern in settings.matrices:
        if any(_asked(matrix, pattern) for matrix in wholes):
            continue
        if (pattern == "head" and tied) or any(fnmatch(path, pattern) for path in tied):
            if not any(_asked(matrix, other) for matrix in wholes if matrix.tied for other in settings.matrices):
                raise AbridgedError(
                    f"methods.kronecker.matrices asks for {pattern!r}, which is tied to the embedding: factor both, by "
                    "'embedding', or neither"
                )
        elif pattern not in PARTS:
            raise AbridgedError(f"methods.kronecker.matrices: the model has no matrix {pattern!r}")
    found = [
        matrix
        for matrix in wholes
        if any(_asked(matrix, pattern) for pattern in settings.matrices) and _in_layers(matrix.layer, settings.layers)
    ]
    if not found:
        raise AbridgedError("methods.kronecker: the model has nothing of what matrices and layers ask for")
    return found


def _asked(matrix: Matrix, pattern: str) -> bool:
    return matrix.part == pattern if pattern in PARTS else fnmatch(matrix.name, pattern)


def _in_layers(layer: int | None, layers: str | list[int]) -> bool:
    if layer is None or layers == "all":
        return True
    return layer in layers if isinstance(layers, list) else layer % 2 == (layers == "odd")


def candidates(matrix: Matrix, settings: Kronecker) -> list[Factors]:
    """The factors that a matrix may get; of several, the nearest to its weights are taken."""
    sizes = (matrix.rows, matrix.columns)
    looked_up = matrix.kind == "embedding" or matrix.part == "head"
    for pattern, shape in settings.shapes.items():
        if fnmatch(matrix.name, pattern):
            if looked_up and shape[0] != 1:
                raise AbridgedError(f"{matrix.name} is looked up by row: its B must be of shape (1, columns)")
            return [factors_of(*sizes, shape, settings.rank, matrix.fused, matrix.name)]
    if settings.form == "low_rank":
        block = matrix.rows // matrix.fused
        rank = low_rank(block, matrix.columns, settings.factor, matrix.name)
        return [Factors((block, 1), (1, matrix.columns), rank, matrix.fused)]
    size = right_size(settings.factor, settings.rank)
    shapes = {"columns": [(1, size)], "rows": [(size, 1)], "nearest": [(1, size), (size, 1)]}[settings.form]
    found, faults = [], []
    for shape in [(1, size)] if looked_up else shapes:
        try:
            found.append(factors_of(*sizes, shape, settings.rank, matrix.fused, matrix.name))
        except AbridgedError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    return found


def check_same(module: Factored, choices: list[Factors], name: str) -> None:
    """Raise AbridgedError unless a module factored before is one of what is asked for now."""
    if module.factors not in choices:
        asked = " or ".join(map(str, choices))
        raise AbridgedError(f"{name} is factored already as {module.factors}; a later stage cannot make it {asked}")


def install(model: nn.Module, matrix: Matrix, choices: list[Factors], initialization: str) -> None:
    """Replace the matrix's module, and those tied to it, by factored ones around the same two weights."""
    weight = _weight(model.get_submodule(matrix.name), matrix)
    start = nearest if initialization == "nearest" else random
    best = min((_terms(weight, factors, start) for factors in choices), key=lambda found: found[1])
    factors, error, pairs = best
    first: Factored | None = None
    for path in (matrix.name, *matrix.tied):
        old: Any = model.get_submodule(path)
        is_embedding = isinstance(old, nn.Embedding)
        with torch.device("meta"):  # its weights are set below
            new = build_factored(factors, is_embedding, getattr(old, "bias", None), getattr(old, "embed_scale", 1.0))
        new.error = error
        if first is None:
            for (_, pair), (left, right) in zip(new.pairs(), pairs, strict=True):
                pair.left.weight, pair.right.weight = nn.Parameter(left), nn.Parameter(right)
            first = new
        else:
            for (_, pair), (_, owner) in zip(new.pairs(), first.pairs(), strict=True):
                pair.left.weight, pair.right.weight = owner.left.weight, owner.right.weight
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(old.training))


def _weight(module: Any, matrix: Matrix) -> Tensor:
    """The matrix (rows, columns) as it stands in the model."""
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        raise AbridgedError(f"{matrix.name} is a {type(module).__name__}: factor it before other methods change it")
    weight: Tensor = module.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise AbridgedError(f"the weights of {matrix.name} are not all finite (NaN or infinity)")
    return weight.t() if matrix.transposed else weight


def _terms(weight: Tensor, factors: Factors, start: Any) -> tuple[Factors, float, list[tuple[Tensor, Tensor]]]:
    """The children's weights of every block, and the error ‖W − ΣA⊗B‖ / ‖W‖ of all blocks together."""
    pairs, lost = [], 0.0
    for block in weight.chunk(factors.fused):
        left, right, error = start(block, factors)
        lost += (error * float(block.norm())) ** 2
        pairs.append(tuple(part.contiguous() for part in layout(factors, left, right)))
    return factors, lost**0.5 / max(float(weight.norm()), 1e-30), pairs  # type: ignore[return-value]

"""Kronecker decomposition at work: puts factored modules into a model, made of the weights that are there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.methods.base import Attached
from abridged.methods.kronecker.decomposition import nearest, nearest_outputs, random
from abridged.methods.kronecker.method import PARTS, Kronecker
from abridged.methods.lockstep import DAMPING, in_lockstep, target
from abridged.runtime.kronecker import Factored, build_factored, layout
from abridged.storage.compressed import record
from abridged.storage.factors import Factors

if TYPE_CHECKING:
    from abridged.families import Matrix, View
    from abridged.methods.base import Calibrate

#: Finds A (rank, m1, n1) and B (rank, m2, n2) of a block, and their error over the block's norm.
Start = Callable[[Tensor, Factors], tuple[Tensor, Tensor, float]]


class Factoring(Attached):
    """See `Kronecker`. It keeps nothing: all that is trained are the factors."""

    def __init__(self, settings: Kronecker, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        """Swap the matrices asked for by factored ones; those factored already in the same way stay as they are.

        Raises AbridgedError for shapes that do not divide a matrix, a rank above the maximum, a layer or path that the
        model does not have, a head asked for without the embedding that it is tied to, weights or inputs that are not
        finite, and matrices that another method has changed before.
        """
        super().__init__(settings, model, view, calibrate)
        matrices = chosen(view, settings)
        choices = {matrix.name: candidates(matrix, settings) for matrix in matrices}  # all, before anything changes
        for name in choices:
            module = model.get_submodule(name)
            if isinstance(module, Factored):
                check_same(module, choices[name], name)
        new = [matrix for matrix in matrices if not isinstance(model.get_submodule(matrix.name), Factored)]
        if settings.initialization == "inputs":
            install_on_inputs(model, new, choices, calibrate)
        else:
            start = nearest if settings.initialization == "nearest" else random
            for matrix in new:
                install(model, matrix, choices[matrix.name], start)


def chosen(view: View, settings: Kronecker) -> list[Matrix]:
    """The view's whole matrices that the settings ask for.

    Raises AbridgedError for a layer, a part or a path that the model does not have, and for a tied head alone.
    """
    wholes = view.whole
    if isinstance(settings.layers, list):
        beyond = [layer for layer in settings.layers if not 0 <= layer < view.layers]
        if beyond:
            raise AbridgedError(
                f"methods.kronecker.layers has {beyond[0]}, but the model's layers end at {view.layers - 1}"
            )
    tied = {path for matrix in wholes for path in matrix.tied}
    for pattern in settings.matrices:
        if any(matrix.is_called(pattern) for matrix in wholes):
            continue
        if (pattern == "head" and tied) or any(fnmatch(path, pattern) for path in tied):
            if not any(matrix.is_called(other) for matrix in wholes if matrix.tied for other in settings.matrices):
                raise AbridgedError(
                    f"methods.kronecker.matrices asks for {pattern!r}, which is tied to the embedding: factor both, by "
                    "'embedding', or neither"
                )
        elif pattern not in PARTS:
            raise AbridgedError(f"methods.kronecker.matrices: the model has no matrix {pattern!r}")
    found = [
        matrix
        for matrix in wholes
        if any(matrix.is_called(pattern) for pattern in settings.matrices) and settings.reaches(matrix.layer)
    ]
    if not found:
        raise AbridgedError("methods.kronecker: the model has nothing of what matrices and layers ask for")
    return found


def candidates(matrix: Matrix, settings: Kronecker) -> list[Factors]:
    """The factors that a matrix may get; of several, the nearest to its weights are taken."""
    sizes = (matrix.rows, matrix.columns)
    looked_up = matrix.kind == "embedding" or matrix.part == "head"
    factor = next((own for pattern, own in settings.factors.items() if matrix.is_called(pattern)), settings.factor)
    for pattern, shape in settings.shapes.items():
        if fnmatch(matrix.name, pattern):
            if looked_up and shape[0] != 1:
                raise AbridgedError(f"{matrix.name} is looked up by row: its B must be of shape (1, columns)")
            return [factors_of(*sizes, shape, settings.rank, matrix.fused, matrix.name)]
    if settings.form == "low_rank":
        block = matrix.rows // matrix.fused
        rank = low_rank(block, matrix.columns, factor, matrix.name)
        return [Factors((block, 1), (1, matrix.columns), rank, matrix.fused)]
    size = right_size(factor, settings.rank)
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


def install_on_inputs(
    model: nn.Module, matrices: list[Matrix], choices: dict[str, list[Factors]], calibrate: Calibrate
) -> None:
    """Install factors whose outputs are nearest on the inputs that a batch of the data brings to each matrix.

    Embeddings come first, then layers in the order of the pass, each on the inputs that the factors before it leave. An
    embedding without a head, and what the pass does not come to, get the nearest to their weights.
    """
    layers = {matrix.name: matrix for matrix in matrices if matrix.kind == "linear"}
    before = copy.deepcopy(model).requires_grad_(False) if layers else None
    for matrix in (matrix for matrix in matrices if matrix.name not in layers):
        heads = [path for path in matrix.tied if not isinstance(model.get_submodule(path), nn.Embedding)]
        if heads:  # a look-up reads every column alike: the damping, of the size of the moments, stands for it
            take = _factors_on_inputs(model, {heads[0]: matrix}, choices, damping=1.0)
            in_lockstep(model, None, heads[:1], calibrate, take, "factors of the embedding")
        _install_nearest(model, matrix, choices)
    if layers:
        take = _factors_on_inputs(model, layers, choices, DAMPING)
        in_lockstep(model, before, list(layers), calibrate, take, "factors of the layers")
    for matrix in layers.values():
        _install_nearest(model, matrix, choices)


def _factors_on_inputs(
    model: nn.Module, readers: dict[str, Matrix], choices: dict[str, list[Factors]], damping: float
) -> Callable[[str, Tensor, Tensor | None], None]:
    """What `in_lockstep` is to do at the paths of layers that read inputs, each with its matrix."""

    def take(path: str, moments: Tensor, crossed: Tensor | None) -> None:
        matrix, old = readers[path], model.get_submodule(path)
        aim, moments = target(_weight(old, matrix), moments, crossed, path, damping)
        install(model, matrix, choices[matrix.name], partial(nearest_outputs, moments=moments), aim)
        new: Any = model.get_submodule(path)
        found = new.dequantized().detach()  # the old module goes on with the pass
        old.weight = nn.Parameter(found.t() if matrix.transposed else found)

    return take


def _install_nearest(model: nn.Module, matrix: Matrix, choices: dict[str, list[Factors]]) -> None:
    if not isinstance(model.get_submodule(matrix.name), Factored):
        install(model, matrix, choices[matrix.name], nearest)


def install(model: nn.Module, matrix: Matrix, choices: list[Factors], start: Start, aim: Tensor | None = None) -> None:
    """Replace the matrix's module, and those tied to it, by factored ones around the same two weights.

    Of several choices that with the least error by `start` is taken, which comes near to `aim` where it is given.
    """
    weight = _weight(model.get_submodule(matrix.name), matrix)
    found = (_terms(weight if aim is None else aim, factors, start) for factors in choices)
    factors, error, pairs = min(found, key=lambda one: one[1])
    first: Factored | None = None
    for path in (matrix.name, *matrix.tied):
        old: Any = model.get_submodule(path)
        is_embedding = isinstance(old, nn.Embedding)
        with torch.device("meta"):  # its weights are set below
            new = build_factored(factors, is_embedding, getattr(old, "bias", None))
        if is_embedding:
            new.take_settings(old)
        if first is None:
            for (_, pair), (left, right) in zip(new.pairs(), pairs, strict=True):
                pair.left.weight, pair.right.weight = nn.Parameter(left), nn.Parameter(right)
            first = new
            if aim is not None:  # what is told of a matrix is its distance from the weights, whatever was sought
                error = float((weight - new.dequantized().detach()).norm() / weight.norm().clamp_min(1e-30))
        else:
            for (_, pair), (_, owner) in zip(new.pairs(), first.pairs(), strict=True):
                pair.left.weight, pair.right.weight = owner.left.weight, owner.right.weight
        record(model, errors={path: error})
        model.set_submodule(path, new.train(old.training))


def _weight(module: Any, matrix: Matrix) -> Tensor:
    """The matrix (rows, columns) as it stands in the model."""
    if "weight" not in dict(module.named_parameters(recurse=False)):  # a quantised module shows its master weight
        raise AbridgedError(f"{matrix.name} is a {type(module).__name__}: factor it before other methods change it")
    weight: Tensor = module.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise AbridgedError(f"the weights of {matrix.name} are not all finite (NaN or infinity)")
    return weight.t() if matrix.transposed else weight


def _terms(weight: Tensor, factors: Factors, start: Start) -> tuple[Factors, float, list[tuple[Tensor, Tensor]]]:
    """The children's weights of every block, and the error of all blocks together, over ‖W‖."""
    pairs, lost = [], 0.0
    for block in weight.chunk(factors.fused):
        left, right, error = start(block, factors)
        lost += (error * float(block.norm())) ** 2
        pairs.append(tuple(part.contiguous() for part in layout(factors, left, right)))
    return factors, lost**0.5 / max(float(weight.norm()), 1e-30), pairs  # type: ignore[return-value]


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

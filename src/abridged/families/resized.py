"""The view of a model that is not as its config says: cut smaller, or with factors in the places of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from abridged.core.errors import AbridgedError
from abridged.runtime.kronecker import Factored
from abridged.storage.view import Matrix, Part, Run, View

if TYPE_CHECKING:
    from abridged.storage.shapes import ShapesSpec


def resized(view: View, shapes: ShapesSpec) -> View:
    """`view`, as the config has it, at the sizes that the model was cut to, without what was removed.

    Raises:
        AbridgedError: the sizes do not fit each other.
    """
    gone = set(shapes.removed)
    parts = [part for part in view.parts if part.path not in gone and part.output not in gone]
    lost = {name for part in view.parts if part not in parts for name in (*part.inputs, part.output)}
    before = {matrix.name: matrix for matrix in view.matrices}
    matrices = {name: _matrix(matrix, shapes) for name, matrix in before.items() if name not in lost}
    resized_parts = [_part(part, before, matrices) for part in parts]
    changed = replace(
        view,
        hidden_size=matrices[view.matrices[0].name].columns,
        matrices=list(matrices.values()),
        attentions=[path for path in view.attentions if path not in gone],
        parts=resized_parts,
    )
    _check(changed, shapes)
    return changed


def _matrix(matrix: Matrix, shapes: ShapesSpec) -> Matrix:
    rows, columns = shapes.sizes.get(matrix.name, (matrix.rows, matrix.columns))
    return replace(matrix, rows=rows, columns=columns)


def _part(part: Part, before: dict[str, Matrix], after: dict[str, Matrix]) -> Part:
    """The part with the units that its first matrix still has; all its matrices must agree."""
    found = {}
    for name in part.inputs:
        each = sum(run.size for run in part.runs[name])
        found[name], rest = divmod(after[name].rows, each)
        if rest:
            raise AbridgedError(f"{name} has {after[name].rows} rows, which are no whole units of {each}")
    if part.output in after:  # that of a pooler is the head for labels, which no method compresses
        each = before[part.output].columns // part.units
        found[part.output], rest = divmod(after[part.output].columns, each)
        if rest:
            raise AbridgedError(f"{part.output} has {after[part.output].columns} columns, no whole units of {each}")
    if len(set(found.values())) > 1:
        raise AbridgedError(f"the matrices of {part.path} are of different widths: {found}")
    units = found[part.inputs[0]]
    gone = range(units, part.units)  # whichever were taken out, those left stand as if the last had been
    return replace(part, units=units, runs={name: _closed_up(runs, gone) for name, runs in part.runs.items()})


def _closed_up(runs: tuple[Run, ...], gone: range) -> tuple[Run, ...]:
    """Runs of rows where the rows of the units `gone` are not there any more."""
    rows = [run.offset + unit * run.stride + row for unit in gone for run in runs for row in range(run.size)]
    return tuple(replace(run, offset=run.offset - sum(row < run.offset for row in rows)) for run in runs)


def _check(view: View, shapes: ShapesSpec) -> None:
    """Raise AbridgedError unless all that reads or writes the residual stream is of its width."""
    width = view.hidden_size
    outputs = {part.output for part in view.parts}
    written = {*view.writers, *view.sources, *(part.output for part in view.parts if part.kind != "pooler")}
    for matrix in view.matrices:
        if matrix.name not in (*outputs, *view.sources) and matrix.columns != width:
            raise AbridgedError(f"{matrix.name} has {matrix.columns} columns, where the model is {width} wide")
        if matrix.name in written and matrix.rows != width:
            raise AbridgedError(f"{matrix.name} has {matrix.rows} rows, where the model is {width} wide")
        for path in matrix.tied:
            if shapes.sizes.get(path, (matrix.rows, matrix.columns)) != (matrix.rows, matrix.columns):
                raise AbridgedError(f"{path} is tied to {matrix.name} and of another size")
    for path in (*view.norms, *view.positions, *view.readers):
        if path in shapes.sizes and shapes.sizes[path][-1] != width:
            raise AbridgedError(f"{path} is {shapes.sizes[path][-1]} wide, where the model is {width} wide")
    for part in view.parts:
        if part.kind == "pooler" and part.output in shapes.sizes and shapes.sizes[part.output][1] != part.units:
            raise AbridgedError(f"{part.output} does not read what its pooler gives")


#: A factor this many times smaller than the other is not listed: it stays in full precision and costs next to nothing.
NEGLIGIBLE = 64


def refined(view: View, model: Any) -> View:
    """`view` with every factored matrix replaced by its factors, each with the whole in `factor_of`."""
    if not any(isinstance(module, Factored) for module in model.modules()):
        return view
    matrices: list[Matrix] = []
    for matrix in view.matrices:
        module = model.get_submodule(matrix.name)
        matrices += _factors(matrix, module) if isinstance(module, Factored) else [matrix]
    return replace(view, matrices=matrices)


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

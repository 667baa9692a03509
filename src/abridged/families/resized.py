"""The anatomy of a model that has been cut smaller than its config says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix, Part

if TYPE_CHECKING:
    from abridged.checkpoint.shapes import ShapesSpec


def resized(anatomy: Anatomy, shapes: ShapesSpec) -> Anatomy:
    """`anatomy`, as the config has it, at the sizes that the model was cut to, without what was removed.

    Raises:
        AbridgedError: the sizes do not fit each other.
    """
    gone = set(shapes.removed)
    parts = [part for part in anatomy.parts if part.path not in gone and part.output not in gone]
    lost = {name for part in anatomy.parts if part not in parts for name in (*part.inputs, part.output)}
    before = {matrix.name: matrix for matrix in anatomy.matrices}
    matrices = {name: _matrix(matrix, shapes) for name, matrix in before.items() if name not in lost}
    resized_parts = [_part(part, before, matrices) for part in parts]
    changed = replace(
        anatomy,
        hidden_size=matrices[anatomy.matrices[0].name].columns,
        matrices=list(matrices.values()),
        attentions=[path for path in anatomy.attentions if path not in gone],
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
        each = before[name].rows // (part.units * before[name].fused)
        found[name], rest = divmod(after[name].rows, each * after[name].fused)
        if rest:
            raise AbridgedError(f"{name} has {after[name].rows} rows, which are no whole units of {each}")
    if part.output in after:  # that of a pooler is the head for labels, which no method compresses
        each = before[part.output].columns // part.units
        found[part.output], rest = divmod(after[part.output].columns, each)
        if rest:
            raise AbridgedError(f"{part.output} has {after[part.output].columns} columns, no whole units of {each}")
    if len(set(found.values())) > 1:
        raise AbridgedError(f"the matrices of {part.path} are of different widths: {found}")
    return replace(part, units=found[part.inputs[0]])


def _check(anatomy: Anatomy, shapes: ShapesSpec) -> None:
    """Raise AbridgedError unless all that reads or writes the residual stream is of its width."""
    width = anatomy.hidden_size
    outputs = {part.output for part in anatomy.parts}
    written = {*anatomy.writers, *(part.output for part in anatomy.parts if part.kind != "pooler")}
    for matrix in anatomy.matrices:
        if matrix.name not in outputs and matrix.columns != width:
            raise AbridgedError(f"{matrix.name} has {matrix.columns} columns, where the model is {width} wide")
        if matrix.name in written and matrix.rows != width:
            raise AbridgedError(f"{matrix.name} has {matrix.rows} rows, where the model is {width} wide")
        for path in matrix.tied:
            if shapes.sizes.get(path, (matrix.rows, matrix.columns)) != (matrix.rows, matrix.columns):
                raise AbridgedError(f"{path} is tied to {matrix.name} and of another size")
    for path in (*anatomy.norms, *anatomy.positions, *anatomy.readers):
        if path in shapes.sizes and shapes.sizes[path][-1] != width:
            raise AbridgedError(f"{path} is {shapes.sizes[path][-1]} wide, where the model is {width} wide")
    for part in anatomy.parts:
        if part.kind == "pooler" and part.output in shapes.sizes and shapes.sizes[part.output][1] != part.units:
            raise AbridgedError(f"{part.output} does not read what its pooler gives")

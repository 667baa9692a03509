"""A model as sets of units that can be removed, and how large each of its modules is with so many of them left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from abridged.checkpoint.resize import size_of
from abridged.errors import AbridgedError

HIDDEN = "hidden"
"""The axis of the residual stream, which embeddings, norms and all blocks share."""

Kept = Mapping[str, Tensor]
"""The units that are kept of each axis: sorted indices, int64."""


@dataclass(frozen=True)
class Axis:
    """A set of units. An attention's or a feed-forward part's has a gate, by which all of it can be removed."""

    name: str  #: HIDDEN, or the path of the part
    kind: Literal["hidden", "attention", "ffn", "pooler"]
    units: int
    layer: int | None = None

    @property
    def gated(self) -> bool:
        return self.kind in ("attention", "ffn")


@dataclass(frozen=True)
class Side:
    """One side of a matrix: `blocks` equal runs of units, each of `size` neighbouring rows or columns."""

    axis: str | None  #: None: nothing of it can be removed
    size: int
    blocks: int
    total: int  #: rows or columns with all units

    def index(self, kept: Kept) -> Tensor | None:
        """The rows or columns of the kept units; None for all."""
        if self.axis is None:
            return None
        units = kept[self.axis].unsqueeze(1) * self.size + torch.arange(self.size)
        all_units = self.total // self.blocks
        return (torch.arange(self.blocks).view(-1, 1, 1) * all_units + units).flatten()

    def length(self, counts: Mapping[str, Any]) -> Any:
        """Rows or columns with so many units left of each axis."""
        return self.total if self.axis is None else counts[self.axis] * (self.size * self.blocks)


@dataclass(frozen=True)
class Module:
    """A matrix, or a norm, which has one side only."""

    path: str
    part: str  #: as the anatomy calls it; "norm" for norms, "reader" for heads for labels
    rows: Side
    columns: Side | None
    bias: bool
    gate: str | None  #: the axis whose gate removes it
    tied: tuple[str, ...] = ()
    head: bool = False  #: whether an output layer reads this embedding


@dataclass(frozen=True)
class Layout:
    """Everything of a model that the axes change the size of, and how many parameters there are besides."""

    axes: dict[str, Axis]
    modules: tuple[Module, ...]
    fixed: int
    attentions: dict[str, int]  #: query heads to a unit, by axis
    outputs: dict[str, str]  #: the output matrix of each part, by axis
    inputs: dict[str, tuple[str, ...]]  #: and the matrices whose rows are its units

    @property
    def attention_outputs(self) -> set[str]:
        """The matrices that read heads."""
        return {self.outputs[name] for name in self.attentions}

    def full(self) -> dict[str, int]:
        """The units of each axis before anything is removed."""
        return {name: axis.units for name, axis in self.axes.items()}

    def open_gates(self) -> dict[str, int]:
        """Every part there."""
        return dict.fromkeys(self.axes, 1)

    def parameters(self, counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Any:
        """Parameters with so many units left of each axis, and each gated part there with `gates`, 0 to 1.

        Numbers or tensors; exact for whole units. Tied matrices count once; embeddings, norms and biases count.
        """
        return self.fixed + sum(size for _, size in self.sizes(counts, gates))

    def sizes(self, counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Iterator[tuple[Module, Any]]:
        """Each module's parameters."""
        for module in self.modules:
            rows = module.rows.length(counts)
            size = rows * (1 if module.columns is None else module.columns.length(counts))
            size = size + rows if module.bias else size
            yield module, size if module.gate is None else size * gates[module.gate]


def layout_of(model: nn.Module, anatomy: Any) -> Layout:
    """The layout of a full-precision model.

    Raises:
        AbridgedError: it is quantised already, or its heads do not divide a matrix.
    """
    if not anatomy.parts:
        raise AbridgedError(f"models of type {anatomy.model_type} cannot be pruned")
    axes = {HIDDEN: Axis(HIDDEN, "hidden", anatomy.hidden_size)}
    axes |= {part.path: Axis(part.path, part.kind, part.units, part.layer) for part in anatomy.parts}
    matrices = {matrix.name: matrix for matrix in anatomy.matrices}
    reads = {part.output: part for part in anatomy.parts}
    written = {name: part for part in anatomy.parts for name in part.inputs}
    on_stream = {*anatomy.writers, *(part.output for part in anatomy.parts if part.kind != "pooler")}

    def linear(path: str, kind: str, fused: int = 1, tied: tuple[str, ...] = ()) -> Module:
        rows, columns = _size(model, path)
        own = written.get(path)
        inner = reads.get(path)
        if own is not None:
            rows_side = _side(path, own.path, own.units, rows, fused)
        else:
            rows_side = Side(HIDDEN if path in on_stream else None, 1, 1, rows)
        side = _side(path, inner.path, inner.units, columns) if inner else Side(HIDDEN, 1, 1, columns)
        gate = next((p.path for p in (own, inner) if p is not None and p.kind != "pooler"), None)
        return Module(path, kind, rows_side, side, _bias(model, path), gate, tied)

    modules = []
    for matrix in anatomy.matrices:
        if matrix.kind == "embedding":
            rows, columns = _size(model, matrix.name)
            sides = Side(None, 1, 1, rows), Side(HIDDEN, 1, 1, columns)
            head = any(isinstance(model.get_submodule(path), nn.Linear) for path in matrix.tied)
            modules.append(Module(matrix.name, matrix.part, *sides, False, None, matrix.tied, head))
        else:
            modules.append(linear(matrix.name, matrix.part, matrix.fused, matrix.tied))
    for path in anatomy.positions:
        if path not in matrices:
            rows, columns = _size(model, path)
            modules.append(Module(path, "positions", Side(None, 1, 1, rows), Side(HIDDEN, 1, 1, columns), False, None))
    for path in (*anatomy.readers, *(part.output for part in anatomy.parts if part.kind == "pooler")):
        modules.append(linear(path, "reader"))
    for path in anatomy.norms:
        (width,) = _size(model, path)
        modules.append(Module(path, "norm", Side(HIDDEN, 1, 1, width), None, _bias(model, path), None))
    draft = Layout(axes, tuple(modules), 0, {}, {}, {})
    total = sum(p.numel() for p in model.parameters())
    counted = draft.parameters(draft.full(), draft.open_gates())
    return Layout(
        axes,
        tuple(modules),
        total - counted,
        {part.path: _query_heads(model, part, matrices) for part in anatomy.parts if part.kind == "attention"},
        {part.path: part.output for part in anatomy.parts},
        {part.path: part.inputs for part in anatomy.parts},
    )


def _size(model: nn.Module, path: str) -> tuple[int, ...]:
    module = model.get_submodule(path)
    size = size_of(module)
    if size is None:
        raise AbridgedError(f"{path} is a {type(module).__name__}: prune before anything else changes the model")
    return size


def _bias(model: nn.Module, path: str) -> bool:
    return getattr(model.get_submodule(path), "bias", None) is not None


def _side(path: str, axis: str, units: int, total: int, fused: int = 1) -> Side:
    size, rest = divmod(total, units * fused)
    if rest:
        raise AbridgedError(f"the {units} heads of {axis} do not divide the {total} rows or columns of {path}")
    return Side(axis, size, fused, total)


def _query_heads(model: nn.Module, part: Any, matrices: dict[str, Any]) -> int:
    """Query heads that go with one unit: those that share its keys and values."""
    width = _size(model, part.output)[1] // part.units
    attention: Any = model.get_submodule(part.path)
    own = getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None)
    if not own or width % own:
        raise AbridgedError(f"{part.path}: heads of {own} do not divide the {width} columns of a group")
    return int(width // own)

"""A model as sets of units that can be removed, and how large each of its modules is with so many of them left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.core.errors import AbridgedError
from abridged.families.heads import head_width
from abridged.families.kinds import labels_texts
from abridged.storage.view import Part, Run, View

_EPS = ("variance_epsilon", "eps", "epsilon")


class NormKind(NamedTuple):
    """y = x, less its mean where it is centered, over the root of its mean square + eps, times weight + offset."""

    centered: bool
    offset: float  #: 1 in Gemma
    eps: float

    def standardize(self, x: Tensor) -> Tensor:
        """What the norm multiplies by its weight, (…, d)."""
        norm = nn.functional.layer_norm if self.centered else nn.functional.rms_norm
        return norm(x, x.shape[-1:], eps=self.eps)


@torch.no_grad()
def kind_of_norm(norm: Any) -> NormKind:
    """The kind of a norm whose weights are there. Raises AbridgedError for what is no such norm."""
    if isinstance(norm, nn.LayerNorm):
        return NormKind(True, 0.0, norm.eps)
    eps = next((float(getattr(norm, name)) for name in _EPS if getattr(norm, name, None) is not None), None)
    if eps is not None:
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(3, len(norm.weight), generator=draw).to(norm.weight)
        y = type(norm).forward(norm, x)  # past the hooks of a model that is followed
        if getattr(norm, "bias", None) is not None:
            y = y - norm.bias
        for centered in (False, True):
            offset = y / NormKind(centered, 0.0, eps).standardize(x) - norm.weight
            if float(offset.std()) < 1e-3:
                return NormKind(centered, float(offset.mean().round()), eps)
    raise AbridgedError(f"a {type(norm).__name__} is neither a LayerNorm nor an RMSNorm, so its width cannot be cut")


HIDDEN = "hidden"
"""The axis of the residual stream, which embeddings, norms and all blocks share."""

Kept = Mapping[str, Tensor]
"""The units that are kept of each axis: sorted indices, int64."""


@dataclass(frozen=True)
class Axis:
    """A set of units. An attention's or a feed-forward part's has a gate, by which all of it can be removed."""

    name: str  #: HIDDEN, or the path of the part
    kind: Literal["hidden", "attention", "ffn", "pooler", "fixed"]
    units: int
    layer: int | None = None

    @property
    def gated(self) -> bool:
        return self.kind in ("attention", "ffn")


@dataclass(frozen=True)
class Side:
    """One side of a matrix, and which of its rows or columns go with each unit of an axis."""

    axis: str | None  #: None: nothing of it can be removed
    total: int  #: rows or columns with all units
    runs: tuple[Run, ...] = ()

    @property
    def size(self) -> int:
        """Rows or columns of one unit."""
        return sum(run.size for run in self.runs)

    def places(self, units: Tensor) -> Tensor:
        """The rows or columns of each of the units (n,): (n, size)."""
        first = units.unsqueeze(1)
        return torch.cat([run.offset + first * run.stride + torch.arange(run.size) for run in self.runs], 1)

    def index(self, kept: Kept) -> Tensor | None:
        """The rows or columns of the kept units, in order; None for all."""
        return None if self.axis is None else self.places(kept[self.axis]).flatten().sort().values

    def length(self, counts: Mapping[str, Any]) -> Any:
        """Rows or columns with so many units left of each axis."""
        return self.total if self.axis is None else counts[self.axis] * self.size


@dataclass(frozen=True)
class Module:
    """A matrix, or a norm, which has one side only."""

    path: str
    part: str  #: as the view calls it; "norm" for norms, "reader" for heads for labels
    rows: Side
    columns: Side | None
    bias: bool
    gate: str | None  #: the axis whose gate removes it
    tied: tuple[str, ...] = ()
    head: bool = False  #: whether an output layer reads this embedding
    norm: NormKind | None = None  #: what a norm does besides


@dataclass(frozen=True)
class Layout:
    """Everything of a model that the axes change the size of, and how many parameters there are besides."""

    axes: dict[str, Axis]
    modules: tuple[Module, ...]
    fixed: int
    attentions: dict[str, int]  #: query heads to a unit, by axis
    outputs: dict[str, str]  #: the output matrix of each part, by axis
    inputs: dict[str, tuple[str, ...]]  #: and the matrices whose rows are its units
    through_base: bool = True  #: whether a pass of the model calls its base model
    bare_stream: bool = False  #: whether a part reads the stream before any norm does
    reads_once: bool = False  #: whether what comes after the blocks reads a text as a whole, rather than each token

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


def layout_of(model: nn.Module, view: View) -> Layout:
    """The layout of a full-precision model.

    Raises:
        AbridgedError: it is quantised already, or its heads do not divide a matrix.
    """
    if not view.parts:
        why = f": {view.faults[-1]}" if view.faults else ""
        raise AbridgedError(f"models of type {view.model_type} cannot be pruned{why}")
    axes = {HIDDEN: Axis(HIDDEN, "hidden", view.hidden_size)}
    axes |= {part.path: Axis(part.path, part.kind, part.units, part.layer) for part in view.parts}
    reads = {part.output: part for part in view.parts}
    written = {name: part for part in view.parts for name in part.inputs}
    on_stream = {*view.writers, *view.sources, *(part.output for part in view.parts if part.kind != "pooler")}

    def linear(path: str, kind: str, tied: tuple[str, ...] = ()) -> Module:
        rows, columns = _size(model, path)
        own, inner = written.get(path), reads.get(path)
        if own is not None:
            rows_side = _side(path, own, rows, own.runs[path])
        else:
            rows_side = _stream(rows) if path in on_stream else Side(None, rows)
        columns_side = Side(None, columns) if path in view.sources else _stream(columns)
        if inner is not None:
            each = columns // inner.units
            columns_side = _side(path, inner, columns, (Run(0, each, each),))
        gate = next((p.path for p in (own, inner) if p is not None and axes[p.path].gated), None)
        return Module(path, kind, rows_side, columns_side, _bias(model, path), gate, tied)

    modules = []
    for matrix in view.matrices:
        if matrix.kind == "embedding":
            rows, columns = _size(model, matrix.name)
            head = any(isinstance(model.get_submodule(path), nn.Linear) for path in matrix.tied)
            sides = Side(None, rows), _stream(columns)
            modules.append(Module(matrix.name, matrix.part, *sides, False, None, matrix.tied, head))
        else:
            modules.append(linear(matrix.name, matrix.part, matrix.tied))
    listed = {matrix.name for matrix in view.matrices}
    for path in view.positions:
        if path not in listed:
            rows, columns = _size(model, path)
            modules.append(Module(path, "positions", Side(None, rows), _stream(columns), False, None))
    for path in (*view.readers, *(part.output for part in view.parts if part.kind == "pooler")):
        modules.append(linear(path, "reader"))
    for path in view.norms:
        (width,) = _size(model, path)
        kind = kind_of_norm(model.get_submodule(path))
        modules.append(Module(path, "norm", _stream(width), None, _bias(model, path), None, norm=kind))
    draft = Layout(axes, tuple(modules), 0, {}, {}, {})
    total = sum(p.numel() for p in model.parameters())
    counted = draft.parameters(draft.full(), draft.open_gates())
    return Layout(
        axes,
        tuple(modules),
        total - counted,
        {part.path: _query_heads(model, part) for part in view.parts if part.kind == "attention"},
        {part.path: part.output for part in view.parts},
        {part.path: part.inputs for part in view.parts},
        view.through_base,
        view.bare_stream,
        labels_texts(model) or getattr(model, "base_model", None) is model,  # the latter has a pooler alone
    )


def size_of(module: nn.Module) -> tuple[int, ...] | None:
    """(rows, columns) of a linear layer or an embedding, (width,) of a norm, None of anything else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if isinstance(module, Conv1D):
        return tuple(weight.shape)[::-1]
    kinds = (nn.Linear, nn.Embedding)
    fits = isinstance(module, kinds) and weight.ndim == 2 or not isinstance(module, kinds) and weight.ndim == 1
    return tuple(weight.shape) if fits else None


def _size(model: nn.Module, path: str) -> tuple[int, ...]:
    module = model.get_submodule(path)
    size = size_of(module)
    if size is None:
        raise AbridgedError(f"{path} is a {type(module).__name__}: prune before anything else changes the model")
    return size


def _bias(model: nn.Module, path: str) -> bool:
    return getattr(model.get_submodule(path), "bias", None) is not None


def _stream(width: int) -> Side:
    return Side(HIDDEN, width, (Run(0, 1, 1),))


def _side(path: str, part: Part, total: int, runs: tuple[Run, ...]) -> Side:
    side = Side(part.path, total, runs)
    if not torch.equal(side.places(torch.arange(part.units)).flatten().sort().values, torch.arange(total)):
        raise AbridgedError(
            f"the {part.units} units of {part.path} do not divide the {total} rows or columns of {path}"
        )
    return side


def _query_heads(model: nn.Module, part: Part) -> int:
    """Query heads that go with one unit: those that share its keys and values."""
    width = _size(model, part.output)[1] // part.units
    own = head_width(model.get_submodule(part.path))
    if not own or width % own:
        raise AbridgedError(f"{part.path}: heads of {own} do not divide the {width} columns of a group")
    return width // own

"""Takes what is not kept physically out of a model: smaller matrices, fewer heads, no block where nothing is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.resize import remove, set_weight
from abridged.families.heads import set_heads
from abridged.families.layout import HIDDEN, Kept, Layout, Module, size_of
from abridged.methods.transforms import Transform
from abridged.models.streamed import changing
from abridged.storage.compressed import compressed_of, record
from abridged.storage.shapes import ShapesSpec


@torch.no_grad()
def cut(
    model: Any,
    layout: Layout,
    kept: Kept,
    factors: Mapping[str, Tensor],
    gates: Mapping[str, Tensor],
    transform: Transform | None = None,
) -> None:
    """Cut `model` in place to the units `kept` of each axis; a gated part without any is removed.

    factors: by axis (units,), what the mask multiplies each unit by: folded into norms and into the columns that read
        the units. gates: by axis (), what the mask multiplies a part's output by, folded into its last matrix.
    transform: of the hidden width, to what takes the place of its kept units: combinations of all. Norms are then right
        only where they scale all units alike (see `reconstruct`).
    The model's record has its `shapes` afterwards.
    """
    before = compressed_of(model).shapes
    total = before.parameters if before else sum(p.numel() for p in model.parameters())
    gone = {name for name, axis in layout.axes.items() if axis.gated and not len(kept[name])}
    removed = list(before.removed) if before else []
    heads = {path: n for path, n in before.heads.items() if path not in gone} if before else {}
    for name in gone:
        removed += _remove(model, layout, name)
    for module in layout.modules:
        if module.gate not in gone:
            with changing(model, module.path):
                _fold(model, module, factors, gates.get(layout_gate(module, layout), None))
                _slice(model, module, kept, transform)
    for name, queries in layout.attentions.items():
        if name not in gone:
            heads[name] = queries * len(kept[name])
            set_heads(model.get_submodule(name), heads[name], name)
    sizes: dict[str, tuple[int, ...]] = {}
    for module in layout.modules:
        for path in (module.path, *module.tied) if module.gate not in gone else ():
            size = size_of(model.get_submodule(path))
            assert size is not None
            sizes[path] = size
    record(model, shapes=ShapesSpec(parameters=total, sizes=sizes, heads=heads, removed=tuple(removed)))


def layout_gate(module: Module, layout: Layout) -> str:
    """The axis whose gate multiplies what a module puts out; no axis for one that is no part's last matrix."""
    return module.gate if module.gate is not None and layout.outputs[module.gate] == module.path else ""


def _remove(model: nn.Module, layout: Layout, name: str) -> list[str]:
    """Take a part out; return the paths that stand for it in a checkpoint."""
    paths = []
    if layout.axes[name].kind == "attention":
        paths.append(name)
        if not layout.outputs[name].startswith(f"{name}."):
            paths.append(layout.outputs[name])
    else:
        paths += [*layout.inputs[name], layout.outputs[name]]
    for path in paths:
        remove(model, path)
    return paths


def _fold(model: nn.Module, module: Module, factors: Mapping[str, Tensor], gate: Tensor | None) -> None:
    """Multiply what the masks multiply into the weights, where they stand: norms, and columns of heads and units."""
    target: Any = model.get_submodule(module.path)
    if module.norm is not None:
        target.weight.add_(module.norm.offset).mul_(factors[HIDDEN]).sub_(module.norm.offset)
        if module.bias:
            target.bias.mul_(factors[HIDDEN])
        return
    assert module.columns is not None
    axis = module.columns.axis
    if axis is not None and axis != HIDDEN:
        by_column = factors[axis].repeat_interleave(module.columns.size)
        target.weight.mul_(by_column.unsqueeze(1) if isinstance(target, Conv1D) else by_column)
    if gate is not None:
        target.weight.mul_(gate)
        if module.bias:
            target.bias.mul_(gate)


def _slice(model: nn.Module, module: Module, kept: Kept, transform: Transform | None) -> None:
    target: Any = model.get_submodule(module.path)
    weight, bias = target.weight.data, target.bias.data if module.bias else None
    if transform is not None:
        weight, bias = transform.merged(target, module)
    transposed = isinstance(target, Conv1D)
    sides = [module.rows] if module.columns is None else [module.rows, module.columns]
    for number, side in enumerate(sides):
        dimension = 1 - number if transposed else number
        index = side.index(kept)
        if index is None or (transform is not None and side.axis == transform.axis):
            continue
        index = index.to(weight.device)
        weight = weight.index_select(dimension, index)
        if number == 0 and bias is not None:
            bias = bias.index_select(0, index)
    set_weight(target, weight.contiguous(), bias)
    for path in module.tied:
        set_weight(model.get_submodule(path), target.weight, None)

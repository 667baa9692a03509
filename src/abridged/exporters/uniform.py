"""A pruned model at one width for all layers, as stock classes need it: where it has that, or padded with zeros."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.heads import head_width
from abridged.families.layout import Side
from abridged.families.quirks import HEAD_NAMES, INNER_NAMES
from abridged.storage.compressed import compressed_of
from abridged.storage.view import Run

_OWN = "only abridged can load what was pruned so"


@dataclass(frozen=True)
class Widths:
    """The sizes that all layers have in common."""

    hidden: int
    groups: int  #: key-value heads
    heads: int
    head_size: int
    inner: int


def uniform_config(packed: Any, pad: bool) -> Any:
    """A stock config of a pruned model's sizes, layers of fewer heads or inner units padded where `pad` allows it.

    Zeros change nothing in heads, inner units and whole blocks. The residual stream cannot be padded: a LayerNorm
    would take its mean over the zeros too.
    Raises :class:`AbridgedError` where layers differ and `pad` is False, or where no stock config has such widths.
    """
    config = copy.deepcopy(packed.config)
    widths, same = _common(packed)
    if not (same or pad):
        raise AbridgedError(
            f"the layers of this model have different numbers of heads or inner units: {_OWN}; --uniform pads them "
            "with zeros"
        )
    heads = _stock_heads(widths, config)
    if heads is None or (heads != widths.heads and not pad):
        raise AbridgedError(
            f"a hidden width of {widths.hidden} does not go with {widths.heads} heads of {widths.head_size} in a stock "
            f"{config.model_type}: {_OWN}; prune with round_to: {widths.head_size} and export with --uniform, or leave "
            "the hidden width as it is, with structures: [heads, ffn, blocks]"
        )
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = heads * widths.groups // widths.heads
        config.head_dim = widths.head_size
    if getattr(config, "scale_embedding", False):
        raise AbridgedError(f"a stock {config.model_type} scales embeddings by its width: {_OWN}")
    sizes = ((("hidden_size",), widths.hidden), (HEAD_NAMES, heads), (INNER_NAMES, widths.inner))
    for names, value in sizes:
        for name in names:
            if hasattr(config, name):
                setattr(config, name, value)
    return config


def _stock_heads(widths: Widths, config: Any) -> int | None:
    """The least number of heads, no fewer than there are, that a stock model of that width can have, if any."""
    if hasattr(config, "num_key_value_heads"):  # such families name the size of a head, but the width must divide
        queries = widths.heads // widths.groups
        return next((n for n in range(widths.heads, widths.hidden + 1, queries) if widths.hidden % n == 0), None)
    heads, rest = divmod(widths.hidden, widths.head_size)
    return None if rest or heads < widths.heads else heads


def _common(packed: Any) -> tuple[Widths, bool]:
    """The largest sizes of any layer, and whether all have them."""
    view = families.view(packed)
    attentions = [part for part in view.parts if part.kind == "attention"]
    inner = [part.units for part in view.parts if part.kind == "ffn"]
    if not attentions or not inner:
        raise AbridgedError(f"no attention or no feed-forward part is left in any layer: {_OWN}")
    matrices = {matrix.name: matrix for matrix in view.matrices}
    largest = max(attentions, key=lambda part: part.units)
    size = head_width(packed.get_submodule(largest.path))
    assert size is not None  # it was cut by it
    widths = Widths(
        hidden=view.hidden_size,
        groups=largest.units,
        heads=matrices[largest.output].columns // size,
        head_size=size,
        inner=max(inner),
    )
    return widths, not layers_differ(packed)


def layers_differ(packed: Any) -> bool:
    """Whether layers of a pruned model have different numbers of heads or inner units, or parts were removed."""
    units = {kind: {p.units for p in families.view(packed).parts if p.kind == kind} for kind in ("attention", "ffn")}
    shapes = compressed_of(packed).shapes
    return bool(shapes and shapes.removed) or any(len(sizes) != 1 for sizes in units.values())


def padded(tensor: Tensor, shape: tuple[int, ...], runs: tuple[Run, ...] = ()) -> Tensor:
    """`tensor` (rows, …) with zeros up to `shape`, at its end; or in each of its runs of rows."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    rows = torch.arange(len(tensor))
    if runs:
        side = Side(None, shape[0], runs)
        rows = side.places(torch.arange(len(tensor) // side.size)).flatten().sort().values
    wide = torch.zeros(len(tensor), *shape[1:], dtype=tensor.dtype)
    wide[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return wide.new_zeros(shape).index_copy(0, rows, wide)

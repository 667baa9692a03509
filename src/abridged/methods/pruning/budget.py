"""What a model takes as a function of how many units are left, and the pressure that brings it down to a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.families.layout import Layout, Module
from abridged.methods.pruning.latency import Measure, latency
from abridged.methods.pruning.settings import Budget

#: Bytes that a file's header has for each tensor, and at its beginning: a generous count.
_HEADER, _TENSOR_HEADER = 64, 160


def measure_of(layout: Layout, budget: Budget) -> Measure:
    """What the budget is counted in."""
    if budget.measure == "parameters":
        return _parameters(layout, budget.embeddings)
    if budget.measure == "bytes":
        return _bytes(layout, budget)
    if budget.measure == "flops":
        return _flops(layout, budget.context)
    return latency(layout, budget.context)


def _parameters(layout: Layout, embeddings: bool) -> Measure:
    if embeddings:
        return layout.parameters
    inner = ("attention", "ffn")
    return lambda counts, gates: sum(size for module, size in layout.sizes(counts, gates) if module.part in inner)


def _bytes(layout: Layout, budget: Budget) -> Measure:
    """Of the file: each row begins at a byte of its own and may have a scale of 4 bytes where it is quantised."""
    bits = budget.bits

    def width(module: Module) -> float:
        if module.part in ("attention", "ffn", "pooler"):
            return bits.weights
        return bits.embeddings if module.part in ("embedding", "head") else bits.rest

    def count(counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Any:
        total: Any = layout.fixed * bits.rest / 8 + _HEADER + _TENSOR_HEADER
        for module in layout.modules:
            rows = module.rows.length(counts)
            own, rest = width(module), rows * bits.rest / 8 if module.bias else 0
            size = rows * own / 8 * (1 if module.columns is None else module.columns.length(counts))
            size = size + (5 * rows if own < 16 else 0) + rest + _TENSOR_HEADER * (1 + module.bias + (own < 16))
            total = total + (size if module.gate is None else size * gates[module.gate])
        return total

    return count


def _flops(layout: Layout, context: int) -> Measure:
    """Of one token in a sequence of `context`: 2 for each weight of a matrix product, 4·context for each head column.

    Poolers and heads for labels of whole texts run once for a sequence. An embedding is looked up, and counts where a
    head reads it.
    """

    def count(counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Any:
        total: Any = 0
        for module in layout.modules:
            if module.columns is None or (module.part in ("embedding", "positions") and not module.head):
                continue
            size = 2 * module.rows.length(counts) * module.columns.length(counts)
            size = size / context if layout.reads_once and module.part in ("pooler", "reader") else size
            if module.path in layout.attention_outputs:
                size = size + 4 * context * module.columns.length(counts)
            total = total + (size if module.gate is None else size * gates[module.gate])
        return total

    return count


class Target:
    """A budget put to a model: what it takes in full, and what it may take."""

    def __init__(self, layout: Layout, budget: Budget) -> None:
        """Raises AbridgedError for a budget that is above what the model takes already."""
        self.measure = measure_of(layout, budget)
        self.name, self.layout = budget.measure, layout
        self.full = float(self.measure(layout.full(), layout.open_gates()))
        self.limit = budget.value * self.full if budget.is_share else budget.value
        if self.limit > self.full * (1 + 1e-9):
            raise AbridgedError(
                f"the model takes {shown(self.full, self.name)} already, less than the budget of "
                f"{shown(self.limit, self.name)}: there is nothing to prune"
            )

    @property
    def share(self) -> float:
        """What may be left of the whole, 0 to 1."""
        return self.limit / self.full

    def left(self, counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Any:
        """The share of the whole that so many units of each axis and so much of each gate are; with their gradients."""
        return self.measure(counts, gates) / self.full

    def limit_at(self, share: float) -> float:
        """The limit when so much of the whole may be left."""
        return max(self.limit, share * self.full)


def shown(value: float, measure: str) -> str:
    """An amount as a person reads it."""
    if measure == "bytes":
        return f"{value / 2**20:.2f} MB"
    if measure == "latency":
        return f"{1e3 * value:.2f} ms"
    return f"{value:,.0f} {'FLOPs a token' if measure == 'flops' else measure}"


class Lagrangian(nn.Module):
    """λ1·(s - t) + λ2·(s - t)² (Wang et al., arXiv:1910.04732; VTrans, section 3): λ1 and λ2 rise while it is not 0.

    Both start at 0 and are ascended: the value is λ·x, and the gradient by λ has its sign turned, so that the optimiser
    that descends the loss ascends them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1))
        self.second = nn.Parameter(torch.zeros(1))

    def forward(self, size: Tensor, target: float) -> Tensor:
        """size () is the share that is expected to be left; target the one that is wanted; gives ()."""
        error = size - target
        first, second = (2 * p.detach() - p for p in (self.first, self.second))
        return (first * error + second * error.square()).sum()

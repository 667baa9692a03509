"""Which units stay: as many of the best as a budget allows, counted exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.families.layout import HIDDEN
from abridged.methods.pruning.budget import Target, shown
from abridged.methods.pruning.masked import Masks

#: How far below a budget a model may end, where no rounding step is larger.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Selection:
    """What stays of a model, and what that takes."""

    kept: dict[str, Tensor]  #: sorted indices by axis; none of a part that is removed
    size: float
    note: str  #: why the size is further below the budget than it should be; usually nothing


@dataclass(frozen=True)
class Item:
    """Units that stay or go together: one, or as many as widths are rounded to; or a part's gate, without units."""

    axis: str
    units: tuple[int, ...]
    score: float


def select(masks: Masks, scores: Tensor, target: Target, limit: float, round_to: int = 1) -> Selection:
    """Keep the units of the highest scores, as many as take no more than `limit` together.

    The longest run of the ranking that fits is taken, then what still fits of the rest, in order. The size is never
    above the limit, and no unit (or step of `round_to`) of any axis fits in what is left.

    Raises:
        AbridgedError: a score is not a number, or even the smallest model is above the limit, whose size is said.
    """
    if not bool(torch.isfinite(scores).all()):
        raise AbridgedError("the masks have collapsed: their scores are not finite; lower the learning rates")
    ranking = Ranking(masks, scores.detach().cpu().double().numpy(), target, round_to)
    smallest = ranking.size(ranking.forced)
    if smallest > limit:
        least = f"{shown(smallest, target.name)}, {100 * smallest / target.full:.1f} % of the whole"
        raise AbridgedError(
            f"the budget of {shown(limit, target.name)} cannot be met: the smallest possible model takes {least}"
        )
    low, high = ranking.forced, len(ranking.items)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if ranking.size(middle) <= limit else (low, middle - 1)
    chosen, size = ranking.filled(low, limit)
    note = ""
    if size < limit * (1 - TOLERANCE):
        note = (
            f"the model takes {shown(size, target.name)}, {100 * (1 - size / limit):.1f} % below the budget of "
            f"{shown(limit, target.name)}: no further unit fits, or nothing is left that may be kept"
        )
    return Selection(ranking.kept(chosen), size, note)


class Ranking:
    """All units in the order in which they are kept; the first `forced` ones always are."""

    def __init__(self, masks: Masks, scores: np.ndarray, target: Target, round_to: int) -> None:
        self.target, self.gated = target, set(masks.gates)
        self.axes = masks.layout.axes
        free = masks.free.cpu().numpy() > 0
        self.base = dict.fromkeys(self.axes, 0)
        self.bound: dict[str, list[int]] = {name: [] for name in self.axes}
        items: list[Item] = []
        first: list[Item] = []
        for name, place in masks.places.items():
            if not free[place].all():
                self.bound[name] = list(range(self.axes[name].units))
                continue
            own = _items(name, scores[place], 1 if self.axes[name].kind == "attention" else round_to)
            if name not in self.gated:  # the residual stream and a pooler cannot go altogether
                first.append(own.pop(0))
            items += own
        for name, gate in masks.gates.items():
            if free[gate]:
                items.append(Item(name, (), float(scores[gate])))
            else:
                self.base[name] = 1
        first += self._attention(items)
        items = [item for item in items if item not in first]
        items.sort(key=lambda item: -item.score)
        self.items, self.forced = first + items, len(first)

    def _attention(self, items: list[Item]) -> list[Item]:
        """The best attention part and the best of its heads: without any, each token is read by itself."""
        own = [item for item in items if self.axes[item.axis].kind == "attention"]
        gates = [item for item in own if not item.units]
        if not gates or any(self.base[name] for name in self.gated if self.axes[name].kind == "attention"):
            return []
        best = max(gates, key=lambda item: item.score)
        heads = [item for item in own if item.units and item.axis == best.axis]
        return [best, *([max(heads, key=lambda item: item.score)] if heads else [])]

    def _state(self, items: list[Item]) -> tuple[dict[str, int], dict[str, int]]:
        counts = {name: len(bound) for name, bound in self.bound.items()}
        gates = dict(self.base)
        for item in items:
            if item.units:
                counts[item.axis] += len(item.units)
            else:
                gates[item.axis] = 1
        return counts, gates

    def _measure(self, counts: dict[str, int], gates: dict[str, int]) -> float:
        there = {name: int(gates[name] > 0 and counts[name] > 0) for name in gates}
        return float(self.target.measure(counts, there))

    def size(self, length: int) -> float:
        """What the first `length` of the ranking take."""
        return self._measure(*self._state(self.items[:length]))

    def filled(self, length: int, limit: float) -> tuple[list[Item], float]:
        """The first `length`, and whatever of the rest still fits, in order; and what all take."""
        chosen = self.items[:length]
        counts, gates = self._state(chosen)
        size, full = self._measure(counts, gates), set()
        for item in self.items[length:]:
            gate = not item.units
            gone = item.axis in self.gated and not gates[item.axis]
            if (item.axis, gate) in full or (gone and not gate):
                continue
            more = ({**counts, item.axis: counts[item.axis] + len(item.units)}, {**gates, item.axis: 1})
            larger = self._measure(*(more if not gate else (counts, more[1])))
            if larger > limit:
                full.add((item.axis, gate))  # the others of this axis are no smaller
                continue
            counts, gates = more if not gate else (counts, more[1])
            size = larger
            chosen.append(item)
        return chosen, size

    def kept(self, chosen: list[Item]) -> dict[str, Tensor]:
        """The units of the chosen, by axis; none of a part whose gate is not among them."""
        units = {name: list(bound) for name, bound in self.bound.items()}
        open_gates = {name for name, value in self.base.items() if value}
        for item in chosen:
            units[item.axis] += item.units
            if not item.units:
                open_gates.add(item.axis)
        return {
            name: torch.tensor(sorted(own) if name not in self.gated or name in open_gates else [], dtype=torch.int64)
            for name, own in units.items()
        }


def _items(axis: str, scores: np.ndarray, round_to: int) -> list[Item]:
    """The units of an axis in descending order, so many at a time, each lot with its mean score."""
    order = np.argsort(-scores, kind="stable")
    lots = [order[i : i + round_to] for i in range(0, len(order), round_to)]
    return [Item(axis, tuple(lot.tolist()), float(scores[lot].mean())) for lot in lots]


def describe(kept: dict[str, Tensor], masks: Masks) -> dict[str, Any]:
    """What stays, in numbers: the hidden width, and by part how many units of how many."""
    parts = {name: [len(kept[name]), axis.units] for name, axis in masks.layout.axes.items() if name != HIDDEN}
    return {"hidden": [len(kept[HIDDEN]), masks.layout.axes[HIDDEN].units], "parts": parts}

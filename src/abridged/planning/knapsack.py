"""One choice for each of several things, so that they fit a size and cost as little as they can.

This is the multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11), solved by
dynamic programming over sizes in units of a grain; what rounding up to grains leaves unused is spent afterwards, on
the single changes that save most. Where the grain divides all differences of sizes, that is the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRAINS = 1 << 16
"""Sizes between the smallest and the largest that are told apart, at most."""


@dataclass(frozen=True)
class Choice:
    """One of several ways to store a thing: what it takes and what it costs."""

    size: int
    cost: float


class Knapsack:
    """Finds the cheapest choices for any size; the work is done once, when it is made."""

    def __init__(self, things: Sequence[Sequence[Choice]], grains: int = GRAINS) -> None:
        """things: the choices of each, at least one, with finite costs."""
        self.things = things
        self._kept = [_useful(choices) for choices in things]
        smallest = [choices[kept[0]].size for choices, kept in zip(things, self._kept, strict=True)]
        largest = [choices[kept[-1]].size for choices, kept in zip(things, self._kept, strict=True)]
        self.smallest, self.largest = sum(smallest), sum(largest)
        above = [
            [things[i][choice].size - smallest[i] for choice in kept] for i, kept in enumerate(self._kept)
        ]  # what each choice takes beyond the smallest
        common = math.gcd(*(size for sizes in above for size in sizes)) or 1
        self._grain = max(common, -(-(self.largest - self.smallest) // grains))
        self._steps = [[-(-size // self._grain) for size in sizes] for sizes in above]
        self._taken = self._fill()

    def _fill(self) -> list[np.ndarray]:
        """For each thing and each number of grains, which of its useful choices the best filling takes."""
        length = sum(steps[-1] for steps in self._steps) + 1
        best, taken = np.zeros(length), []
        for choices, kept, steps in zip(self.things, self._kept, self._steps, strict=True):
            costs = np.full((len(kept), length), np.inf)
            for row, (choice, step) in enumerate(zip(kept, steps, strict=True)):
                costs[row, step:] = best[: length - step] + choices[choice].cost
            taken.append(costs.argmin(0).astype(np.uint16))
            best = costs.min(0)
        return taken

    def solve(self, size: int) -> list[int] | None:
        """The index of each thing's choice, all of them at most `size` together; None where nothing is so small."""
        if size < self.smallest:
            return None
        left = min((size - self.smallest) // self._grain, len(self._taken[0]) - 1) if self._taken else 0
        chosen = []
        for kept, steps, taken in zip(self._kept[::-1], self._steps[::-1], self._taken[::-1], strict=True):
            row = int(taken[left])
            chosen.append(kept[row])
            left -= steps[row]
        return self._spend(chosen[::-1], size)

    def _spend(self, chosen: list[int], size: int) -> list[int]:
        """Change one choice after another for a better one that fits into what is left, the largest saving first."""
        left = size - self.size(chosen)
        while True:
            saved, thing, choice = max(
                (
                    (choices[now].cost - choices[i].cost, thing, i)
                    for thing, (choices, now) in enumerate(zip(self.things, chosen, strict=True))
                    for i in self._kept[thing]
                    if choices[i].size - choices[now].size <= left
                ),
                default=(0.0, 0, 0),
            )
            if saved <= 0:
                return chosen
            left -= self.things[thing][choice].size - self.things[thing][chosen[thing]].size
            chosen[thing] = choice

    def size(self, chosen: Sequence[int]) -> int:
        """What all choices together take."""
        return sum(choices[i].size for choices, i in zip(self.things, chosen, strict=True))

    def cost(self, chosen: Sequence[int]) -> float:
        """What all choices together cost."""
        return sum(choices[i].cost for choices, i in zip(self.things, chosen, strict=True))


def _useful(choices: Sequence[Choice]) -> list[int]:
    """The choices, by size, of which each costs less than all that are smaller."""
    kept: list[int] = []
    for i in sorted(range(len(choices)), key=lambda i: (choices[i].size, choices[i].cost)):
        if not kept or choices[i].cost < choices[kept[-1]].cost:
            kept.append(i)
    return kept

"""One choice for each of several things, so that they fit a size and cost as little as they can.

This is the multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11), solved by
dynamic programming over sizes in units of a grain; what rounding up to grains leaves unused is spent afterwards, on
the single changes that save most. Where the grain divides all differences of sizes, that is the optimum.

Further amounts than the size may be limited too, such as time. That is Lagrangian relaxation (Handler and Zang,
Networks 10, 1980): an amount is given a price, which is added to the cost, and the lowest price at which the limit is
kept is found along the hull of what can be had. What lies between two prices is again spent on single changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

GRAINS = 1 << 16
"""Sizes between the smallest and the largest that are told apart, at most."""
PRICED_GRAINS = 1 << 13
"""The same, where a knapsack is solved for one price after another."""
_PRICES = 24  #: that are tried for one limit, at most


@dataclass(frozen=True)
class Choice:
    """One of several ways to store a thing: what it takes, what it costs, and what else it takes that is limited."""

    size: int
    cost: float
    more: tuple[float, ...] = ()


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
        return _spend(self.things, chosen[::-1], size)

    def size(self, chosen: Sequence[int]) -> int:
        """What all choices together take."""
        return sum(choices[i].size for choices, i in zip(self.things, chosen, strict=True))

    def cost(self, chosen: Sequence[int]) -> float:
        """What all choices together cost."""
        return sum(choices[i].cost for choices, i in zip(self.things, chosen, strict=True))


def solve_within(things: Sequence[Sequence[Choice]], size: int, limits: Sequence[float]) -> list[int] | None:
    """The index of each thing's choice, of which all together take at most `size`, and of what else they take at most
    so much of each as `limits` say (infinity: as much as they like); None where there is nothing such."""
    chosen = _priced(things, size, limits, 0)
    return None if chosen is None else _spend(things, chosen, size, limits)


def least(things: Sequence[Sequence[Choice]], size: int, limits: Sequence[float], which: int) -> list[int] | None:
    """The choices that take the least of one of the limited amounts, within `size` and the other limits."""
    alone = [[replace(choice, cost=choice.more[which]) for choice in choices] for choices in things]
    others = [math.inf if i == which else limit for i, limit in enumerate(limits)]
    return _priced(alone, size, others, 0)


def _priced(things: Sequence[Sequence[Choice]], size: int, limits: Sequence[float], which: int) -> list[int] | None:
    """`solve_within` of the limits from `which` on, those before it being priced already; nothing is spent."""
    if which == len(limits):
        return Knapsack(things, PRICED_GRAINS).solve(size)

    def solved(cost: Callable[[Choice], float]) -> tuple[list[int] | None, float, float]:
        """The best choices by another cost, and their own cost and amount."""
        given = [[replace(choice, cost=cost(choice)) for choice in choices] for choices in things]
        found = _priced(given, size, limits, which + 1)
        taken = [] if found is None else [choices[i] for choices, i in zip(things, found, strict=True)]
        return found, sum(choice.cost for choice in taken), sum(choice.more[which] for choice in taken)

    limit = limits[which]
    cheap, cheap_cost, above = solved(lambda choice: choice.cost)
    if cheap is None or above <= limit:
        return cheap
    kept, kept_cost, below = solved(lambda choice: choice.more[which])
    if kept is None or below > limit:
        return None
    for _ in range(_PRICES):
        price = max(0.0, (kept_cost - cheap_cost) / (above - below))
        found, cost, amount = solved(lambda choice, price=price: choice.cost + price * choice.more[which])  # type: ignore[misc]
        if cost + price * amount >= kept_cost + price * below - 1e-9 * abs(kept_cost):
            break  # no corner of the hull is left between the two
        if amount <= limit:
            kept, kept_cost, below = found, cost, amount
        else:
            cheap_cost, above = cost, amount
    return kept


def _spend(
    things: Sequence[Sequence[Choice]], chosen: Sequence[int], size: int, limits: Sequence[float] = ()
) -> list[int]:
    """Change one choice after another for a better one that fits into what is left, the largest saving first."""
    chosen = list(chosen)
    now = [choices[i] for choices, i in zip(things, chosen, strict=True)]
    left: list[float] = [size - sum(choice.size for choice in now)]
    left += [limit - sum(choice.more[i] for choice in now) for i, limit in enumerate(limits)]
    while True:
        saved, thing, other = max(
            (
                (now[thing].cost - choice.cost, thing, i)
                for thing, choices in enumerate(things)
                for i, choice in enumerate(choices)
                if choice.cost < now[thing].cost and _fits(_extra(now[thing], choice, limits), left)
            ),
            default=(0.0, 0, 0),
        )
        if saved <= 0:
            return chosen
        choice = things[thing][other]
        left = [room - more for room, more in zip(left, _extra(now[thing], choice, limits), strict=True)]
        now[thing], chosen[thing] = choice, other


def _extra(now: Choice, other: Choice, limits: Sequence[float]) -> list[float]:
    """What another choice takes more, of the size and of everything limited."""
    return [other.size - now.size, *(other.more[i] - now.more[i] for i in range(len(limits)))]


def _fits(extra: Sequence[float], left: Sequence[float]) -> bool:
    return all(more <= room for more, room in zip(extra, left, strict=True))


def _useful(choices: Sequence[Choice]) -> list[int]:
    """The choices, by size, of which each costs less than all that are smaller."""
    kept: list[int] = []
    for i in sorted(range(len(choices)), key=lambda i: (choices[i].size, choices[i].cost)):
        if not kept or choices[i].cost < choices[kept[-1]].cost:
            kept.append(i)
    return kept

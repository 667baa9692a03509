"""A plan: the form of every matrix for a size that somebody names, and what other sizes would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.families.standin import plain_config, skeleton
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.attached import settings_of
from abridged.methods.quantization.method import Quantize
from abridged.planning.forms import Assignment, Form, assigned, assignment_of, forms_of, quantizing
from abridged.planning.knapsack import Choice, Knapsack, least, solve_within
from abridged.planning.limits import Limits
from abridged.planning.machine import Machine
from abridged.planning.pruned import on_meta, with_pruning, without_pruning
from abridged.planning.sensitivity import Costs, Text, Way, find_costs
from abridged.planning.sizes import Sizes
from abridged.planning.words import megabytes
from abridged.recipe import Expected, Recipe
from abridged.storage.view import Matrix, View
from abridged.training import gates

FRONT = 12
"""Sizes of a front, beside the one that was asked for."""


@dataclass(frozen=True)
class Point:
    """One size: which form each matrix has, the bytes of the weights' file, and the loss that is expected.

    The loss is the divergence from the original's answers before any training, in nats a token; e to it is by how much
    perplexity grows. Tokens a second and bytes in memory are those on a machine that was measured.
    """

    assignment: Assignment
    file_bytes: int
    loss: float
    share: float = 1.0  #: of the parameters, to which the model is pruned first
    tokens_per_second: float | None = None
    memory: int | None = None

    def bits(self, matrices: Sequence[Matrix], embedding: bool) -> float:
        """Mean bits of a weight, scales aside, of embeddings and heads, or of all other matrices; 0 of none."""
        there = [m for m in matrices if m.name in self.assignment]  # of a pruned model's some may be gone
        own = [m for m in there if (m.part in ("embedding", "head")) == embedding]
        weights = [m.rows * m.columns for m in own]
        bits = [self.assignment[m.name].bits for m in own]
        return float(np.average(bits, weights=weights)) if own else 0.0


class Planner:
    """Knows what each form of each matrix takes and costs, and finds the best choice for any size.

    1. The forms of each matrix are all that the recipe's quantiser offers, in several group sizes, whole or in factors.
    2. The format counts the bytes of each.
    3. Sensitivity says what each costs.
    4. A knapsack over the two gives the choice for a size; the file is then counted whole.
    5. Where speed or memory are limited too, a machine says what each form takes there, and the knapsack keeps to it.
    """

    def __init__(
        self,
        kind: type,
        config: Any,
        view: View,
        recipe: Recipe,
        small: Any = None,
        share: float = 1.0,
        loss: float = 0.0,
    ) -> None:
        """For a model of a class and a config; or for `small`, one such as it was loaded, or pruned to a `share` at a
        `loss`.

        Raises AbridgedError for a recipe that does more than to quantise, or quantises nothing.
        """
        self.recipe, quantize = recipe, _only_quantize(recipe)
        self.share, self.loss = share, loss
        self.machine: Machine | None = None
        usual = settings_of(view, quantize)
        self.matrices = [
            matrix
            for matrix in view.matrices
            if usual[matrix.name].bits is not None
            and (matrix.part != "positions" or quantize.positions)
            and not any(matrix.is_called(pattern) for pattern in quantize.exceptions)  # somebody has decided already
        ]
        if not self.matrices:
            raise AbridgedError(f"recipe {recipe.name} leaves nothing to plan: no matrix of the model is quantised")
        self.forms = forms_of(self.matrices, usual, factors=_can_be_factored(kind, config))
        model = skeleton(kind, plain_config(config)) if small is None else on_meta(small)
        self.sizes = Sizes(model, recipe, self.matrices, self.forms)
        self.dense_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())

    def check(self, size: int) -> None:
        """Raise AbridgedError for a size that cannot be had, before anything is read to plan it."""
        least = {name: min(own, key=lambda form: self.sizes.of(name, form)) for name, own in self.forms.items()}
        self._refuse_below(self.sizes.file_bytes(least), size)

    def _refuse_below(self, smallest: int, size: int) -> None:
        if size < smallest:
            raise AbridgedError(
                f"{megabytes(size)} cannot be had: the smallest that recipe {self.recipe.name} can make of this model "
                f"is {megabytes(smallest)} ({smallest:,} bytes)"
            )

    def learn(self, text: Text, way: Way) -> None:
        """Find what each form costs on a text; needed once before anything is planned."""
        self.take(find_costs(text, self.matrices, self.forms, way), way, text.tokens)

    def take(self, costs: Costs, way: Way, tokens: int) -> None:
        """Plan by costs that are known; see `learn`."""
        self.costs, self.way, self.tokens = costs, way, tokens
        self.limits, self.machine = Limits(), None
        self._things = [
            [
                Choice(self.sizes.of(m.name, form), cost)
                for form, cost in zip(self.forms[m.name], costs[m.name], strict=True)
            ]
            for m in self.matrices
        ]
        self._knapsack = Knapsack(self._things)
        self.smallest = self._point(self._knapsack.smallest)
        self.largest = self._point(self._knapsack.largest)

    def limit(self, limits: Limits, machine: Machine) -> None:
        """Plan within limits on a machine from now on."""
        self.limits, self.machine = limits, machine
        self._things = [
            [
                Choice(choice.size, choice.cost, (machine.bytes[m.name][form], machine.seconds[m.name][form]))
                for form, choice in zip(self.forms[m.name], choices, strict=True)
            ]
            for m, choices in zip(self.matrices, self._things, strict=True)
        ]

    def at(self, size: int) -> Point:
        """The best choice whose file has at most `size` bytes.

        Raises AbridgedError where there is none; the sentence says what the smallest is, or what comes nearest to the
        limits of speed and memory.
        """
        self._refuse_below(self.smallest.file_bytes, size)
        room = size - (self.largest.file_bytes - self._knapsack.largest)
        while (point := self._point(max(room, self._knapsack.smallest))).file_bytes > size:
            room -= point.file_bytes - size
        return point

    def assess(self, assignment: Assignment) -> Point:
        """Any assignment: its exact bytes, and the loss that is expected."""
        loss = sum(self.costs[name][self.forms[name].index(form)] for name, form in assignment.items())
        point = Point(assignment, self.sizes.file_bytes(assignment), self.loss + loss, self.share)
        if self.machine is None:
            return point
        speed, memory = self.machine.tokens_per_second(assignment), self.machine.memory(assignment)
        return replace(point, tokens_per_second=speed, memory=memory)

    def _point(self, size: int) -> Point:
        chosen = self._knapsack.solve(size) if self.machine is None else self._within_limits(size, self.machine)
        assert chosen is not None
        return self.assess(self._named(chosen))

    def _named(self, chosen: Sequence[int]) -> dict[str, Form]:
        return {m.name: self.forms[m.name][i] for m, i in zip(self.matrices, chosen, strict=True)}

    def _within_limits(self, size: int, machine: Machine) -> list[int]:
        """Choices of at most `size` that keep to the limits. Raises AbridgedError where there are none."""
        limits = self.limits.within(machine)
        found = solve_within(self._things, size, limits)
        for which, limit in enumerate(limits) if found is None else ():
            found = least(self._things, size, [*limits[:which], math.inf, math.inf][:2], which)
            assert found is not None
            if sum(choices[i].more[which] for choices, i in zip(self._things, found, strict=True)) > limit:
                nearest = self.assess(self._named(found))
                told = nearest.memory, nearest.tokens_per_second
                raise AbridgedError(self.limits.refusal(which, size, *told, machine))
        assert found is not None
        return found


def best(planners: Sequence[Planner], size: int) -> tuple[Planner, Point]:
    """Of several shares that a model may be pruned to, the one whose plan of a size loses the least.

    Raises AbridgedError where none has one, as that says which has the smallest.
    """
    found, faults = [], []
    for planner in sorted(planners, key=lambda one: -one.smallest.file_bytes):
        try:
            found.append((planner, planner.at(size)))
        except AbridgedError as error:
            faults.append(error)
    if not found:
        raise faults[-1]
    return min(found, key=lambda one: one[1].loss)


def front_of(planners: Sequence[Planner], count: int = FRONT, more: Sequence[int] = ()) -> list[Point]:
    """The best points between the smallest and the largest size, in equal ratios, and those of `more` sizes; by size,
    each larger one with a smaller loss."""
    ends = min(p.smallest.file_bytes for p in planners), max(p.largest.file_bytes for p in planners)
    wanted = sorted({*np.geomspace(*ends, count).round().astype(int).tolist(), *more} | {*ends})
    front: list[Point] = []
    for size in wanted:
        with suppress(AbridgedError):  # it is too small, or not within the limits
            point = best(planners, size)[1]
            if not front or (point.loss < front[-1].loss and point.file_bytes > front[-1].file_bytes):
                front.append(point)
    return front


@dataclass(frozen=True)
class Plan:
    """What was planned for a size.

    Attributes:
        size: in bytes, as asked.
        point: what was chosen.
        front: other sizes, by size.
        matrices: that were planned.
        recipe: makes it, and says what is expected.
        dense_bytes: of the model in FP32.
        way, tokens: how sensitivity was found, and on how many tokens.
        seconds: that the recipe's training takes on this machine, about.
    """

    size: int
    point: Point
    front: list[Point]
    matrices: list[Matrix]
    recipe: Recipe
    dense_bytes: int
    way: Way
    tokens: int
    seconds: float


def make_recipe(
    planner: Planner, size: int, point: Point, front: Sequence[Point], asked: Mapping[str, Any] | None = None
) -> Recipe:
    """The planner's recipe with a point's forms, which remembers what is expected of it, and what was `asked` beside
    the size."""
    expected = Expected(
        size=size,
        asked=dict(asked or {}),
        file_bytes=point.file_bytes,
        loss=point.loss,
        way=planner.way,
        tokens=planner.tokens,
        front=[(one.file_bytes, one.loss) for one in front],
        tokens_per_second=point.tokens_per_second,
        memory=point.memory,
    )
    told = f"{planner.recipe.name} with bits for each matrix, in {megabytes(point.file_bytes)}"
    changed = {"name": f"plan-{size / 2**20:.2f}MB", "description": told, "expected": expected}
    made = assigned(planner.recipe, point.assignment).model_copy(update=changed)
    return made if planner.share == 1 else with_pruning(made, planner.share)


def made_before(
    data: Mapping[str, Any] | None, recipe: Recipe, size: int, asked: Mapping[str, Any] | None = None
) -> Recipe | None:
    """The recipe, as JSON, that a plan has made before, where the same was asked, and of this recipe; else None."""
    made = Recipe.load(data) if data else None
    if made is None or not quantizing(made) or made.expected is None:
        return None
    if (made.expected.size, made.expected.asked) != (size, asked or {}):
        return None
    told = {name: getattr(made, name) for name in ("name", "description", "expected")}
    frame, share = without_pruning(made)
    again = assigned(recipe, assignment_of(frame)).model_copy(update=told)
    return made if (again if share == 1 else with_pruning(again, share)) == made else None


def check_compresses(size: int, dense_bytes: int) -> None:
    """Raise AbridgedError for a size that a model of `dense_bytes` has without compression."""
    if size >= dense_bytes:
        raise AbridgedError(
            f"{megabytes(size)} needs no compression: the model takes {megabytes(dense_bytes)} as it is, in FP32"
        )


def groups(matrices: Sequence[Matrix], assignment: Assignment) -> dict[Form, list[str]]:
    """The names of the matrices by the form that they have, fewest bits first."""
    found: dict[Form, list[str]] = {}
    for matrix in sorted(matrices, key=lambda m: assignment[m.name].bits):
        found.setdefault(assignment[matrix.name], []).append(matrix.name)
    return found


def _only_quantize(recipe: Recipe) -> Quantize:
    others = sorted(
        {name for stage in recipe.stages for name, m in stage.methods.items() if not isinstance(m, Quantize)}
    )
    found = quantizing(recipe)
    if others or not found:
        does = f"has the methods {', '.join(others)}" if others else "quantises nothing"
        raise AbridgedError(f"a plan is for a recipe that quantises and does nothing else, and {recipe.name} {does}")
    return found[-1][1]


def _can_be_factored(kind: type, config: Any) -> bool:
    """Whether matrices of such a model may be replaced by factors."""
    try:
        gates.refuse(kind, config, [Kronecker()])
    except AbridgedError:
        return False
    return True

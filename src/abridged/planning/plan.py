"""A plan: the form of every matrix for a size that somebody names, and what other sizes would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abridged.core import amounts
from abridged.core.errors import AbridgedError
from abridged.methods.quantization.attached import settings_of
from abridged.methods.quantization.forms import forms
from abridged.methods.quantization.method import Quantize
from abridged.methods.quantization.modules import count_scales
from abridged.methods.quantization.settings import WeightSettings
from abridged.planning.knapsack import Choice, Knapsack
from abridged.planning.sensitivity import Costs, Text, Way, find_costs
from abridged.planning.sizes import Assignment, Sizes, assigned, last_quantize
from abridged.recipe import Expected, Recipe
from abridged.storage.code_books import storage_bits
from abridged.storage.view import Matrix, View
from abridged.training.dry import made_of

GROUP_SIZES = (None, 128, 64, 32)
"""Neighbours in a row that may share a scale; None is a row."""
FRONT = 12
"""Sizes of a front, beside the one that was asked for."""
_MOST_BYTES = 1 << 50


@dataclass(frozen=True)
class Point:
    """One size: which form each matrix has, the bytes of the weights' file, and the loss that is expected.

    The loss is the divergence from the original's answers before any training, in nats a token; e to it is by how much
    perplexity grows.
    """

    assignment: Assignment
    file_bytes: int
    loss: float

    def bits(self, matrices: Sequence[Matrix], embedding: bool) -> float:
        """Mean bits of a weight, scales aside, of embeddings and heads, or of all other matrices; 0 of none."""
        own = [m for m in matrices if (m.part in ("embedding", "head")) == embedding]
        weights = [m.rows * m.columns for m in own]
        bits = [stored_bits(self.assignment[m.name]) for m in own]
        return float(np.average(bits, weights=weights)) if own else 0.0


class Planner:
    """Knows what each form of each matrix takes and costs, and finds the best choice for any size.

    1. The forms of each matrix are all that the recipe's quantiser offers, in several group sizes.
    2. The format counts the bytes of each.
    3. Sensitivity says what each costs.
    4. A knapsack over the two gives the choice for a size; the file is then counted whole.
    """

    def __init__(self, kind: type, config: Any, view: View, recipe: Recipe) -> None:
        """Raises AbridgedError for a recipe that does more than to quantise, or quantises nothing."""
        self.recipe, quantize = recipe, _only_quantize(recipe)
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
        offered = {
            settings: forms(settings, GROUP_SIZES) for settings in dict.fromkeys(usual[m.name] for m in self.matrices)
        }
        self.forms = {m.name: [form for form in offered[usual[m.name]] if _fits(m, form)] for m in self.matrices}
        self.sizes = Sizes(kind, config, recipe, self.matrices, self.forms)
        self.dense_bytes = made_of(kind, config, view)["dense_bytes"]

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
        self._knapsack = Knapsack(
            [
                [
                    Choice(self.sizes.of(m.name, f), cost)
                    for f, cost in zip(self.forms[m.name], costs[m.name], strict=True)
                ]
                for m in self.matrices
            ]
        )
        self.smallest = self._point(self._knapsack.smallest)
        self.largest = self._point(self._knapsack.largest)

    def at(self, size: int) -> Point:
        """The best choice whose file has at most `size` bytes.

        Raises AbridgedError where there is none; the sentence says what the smallest is.
        """
        self._refuse_below(self.smallest.file_bytes, size)
        room = size - (self.largest.file_bytes - self._knapsack.largest)  # the header of the largest is the longest
        while (point := self._point(max(room, self._knapsack.smallest))).file_bytes > size:
            room -= point.file_bytes - size
        return point

    def front(self, count: int = FRONT, more: Sequence[int] = ()) -> list[Point]:
        """Points between the smallest and the largest size, in equal ratios, and those of `more` sizes; by size, each
        larger one with a smaller loss."""
        ends = self.smallest.file_bytes, self.largest.file_bytes
        wanted = sorted({*np.geomspace(*ends, count).round().astype(int).tolist(), *more} | {*ends})
        points = [self.at(size) for size in wanted if size >= ends[0]]
        front = [points[0]]
        for point in points[1:]:
            if point.loss < front[-1].loss and point.file_bytes > front[-1].file_bytes:
                front.append(point)
        return front

    def assess(self, assignment: Assignment) -> Point:
        """Any assignment: its exact bytes, and the loss that is expected."""
        loss = sum(self.costs[name][self.forms[name].index(form)] for name, form in assignment.items())
        return Point(assignment, self.sizes.file_bytes(assignment), loss)

    def _point(self, size: int) -> Point:
        chosen = self._knapsack.solve(size)
        assert chosen is not None
        return self.assess({m.name: self.forms[m.name][i] for m, i in zip(self.matrices, chosen, strict=True)})


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


def make_recipe(planner: Planner, size: int, point: Point, front: Sequence[Point]) -> Recipe:
    """The planner's recipe with a point's forms, which remembers what is expected of it."""
    expected = Expected(
        size=size,
        file_bytes=point.file_bytes,
        loss=point.loss,
        way=planner.way,
        tokens=planner.tokens,
        front=[(one.file_bytes, one.loss) for one in front],
    )
    told = f"{planner.recipe.name} with bits for each matrix, in {megabytes(point.file_bytes)}"
    changed = {"name": f"plan-{size / 2**20:.2f}MB", "description": told, "expected": expected}
    return assigned(planner.recipe, point.assignment).model_copy(update=changed)


def made_before(data: Mapping[str, Any] | None, recipe: Recipe, size: int) -> Recipe | None:
    """The recipe, as JSON, that a plan has made before, where it was for this size and from this recipe; else None."""
    made = Recipe.load(data) if data else None
    found = last_quantize(made) if made else None
    if made is None or found is None or made.expected is None or made.expected.size != size:
        return None
    told = {name: getattr(made, name) for name in ("name", "description", "expected")}
    return made if assigned(recipe, found[1].exceptions).model_copy(update=told) == made else None


def size_in_bytes(size: int | str, dense_bytes: int | None = None) -> int:
    """A size as people write it, in bytes.

    Raises AbridgedError for what is no size, or one that a model of `dense_bytes` has without compression.
    """
    try:
        count = round(amounts.amount(size, "numbers", "40MB"))
    except ValueError as error:
        raise AbridgedError(f"--size {error}") from None
    except OverflowError:
        count = _MOST_BYTES + 1
    if isinstance(size, str) and size.strip().isdecimal():
        raise AbridgedError(f"--size needs a unit: {size.strip()}MB, or {size.strip()}B for bytes")
    if count > _MOST_BYTES:
        raise AbridgedError(f"--size {size} is more than any model takes (such as 40MB)")
    if dense_bytes is not None and count >= dense_bytes:
        raise AbridgedError(
            f"{megabytes(count)} needs no compression: the model takes {megabytes(dense_bytes)} as it is, in FP32"
        )
    return count


def stored_bits(form: WeightSettings) -> float:
    """Bits of a weight in a file, scales aside."""
    assert form.bits is not None
    return storage_bits(form.kind.grid_of(form.grid, form.bits).code_book, form.packing)


def described(form: WeightSettings) -> str:
    """A form in a few words, such as "4 bits, groups of 64"."""
    share = {"per_tensor": "a scale a matrix", "per_channel": "a scale a row"}.get(form.granularity)
    grid = "" if form.grid in ("binary", "integer") else f" ({form.grid})"
    return f"{stored_bits(form):g} bits{grid}, {share or f'groups of {form.group_size}'}"


def megabytes(count: float) -> str:
    """Bytes as MB of 2^20."""
    return f"{count / 2**20:,.2f} MB"


def groups(matrices: Sequence[Matrix], assignment: Assignment) -> dict[WeightSettings, list[str]]:
    """The names of the matrices by the form that they have, fewest bits first."""
    found: dict[WeightSettings, list[str]] = {}
    for matrix in sorted(matrices, key=lambda m: stored_bits(assignment[m.name])):
        found.setdefault(assignment[matrix.name], []).append(matrix.name)
    return found


def _only_quantize(recipe: Recipe) -> Quantize:
    others = sorted(
        {name for stage in recipe.stages for name, m in stage.methods.items() if not isinstance(m, Quantize)}
    )
    found = last_quantize(recipe)
    if others or found is None:
        does = f"has the methods {', '.join(others)}" if others else "quantises nothing"
        raise AbridgedError(f"a plan is for a recipe that quantises and does nothing else, and {recipe.name} {does}")
    return found[1]


def _fits(matrix: Matrix, form: WeightSettings) -> bool:
    """Whether the groups of a form divide a matrix's rows."""
    try:
        count_scales(matrix.rows, matrix.columns, matrix.fused, form)
    except AbridgedError:
        return False
    return True

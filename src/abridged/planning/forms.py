"""The ways in which a plan may store a matrix: whole, or as two thin factors, in any bits that the quantiser has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from abridged.core.errors import AbridgedError
from abridged.methods.kronecker.attached import candidates
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.forms import forms
from abridged.methods.quantization.method import Quantize
from abridged.methods.quantization.modules import count_scales
from abridged.methods.quantization.settings import WeightSettings
from abridged.recipe import Recipe
from abridged.storage.code_books import storage_bits
from abridged.storage.factors import Factors
from abridged.storage.view import Matrix

GROUP_SIZES = (None, 128, 64, 32)
"""Neighbours in a row that may share a scale; None is a row."""
FACTORS = (2, 4)
"""How many times fewer numbers the factors of a matrix may have."""


@dataclass(frozen=True)
class Form:
    """A matrix in the bits of `weights`; with a `factor` above 1 as a product of low rank of so many times fewer
    numbers, both of whose factors are in those bits."""

    weights: WeightSettings
    factor: int = 1

    @property
    def whole(self) -> bool:
        return self.factor == 1

    @property
    def bits(self) -> float:
        """Bits of a weight in a file, scales aside; where there are factors, of a weight of the matrix."""
        weights = self.weights
        assert weights.bits is not None
        return storage_bits(weights.kind.grid_of(weights.grid, weights.bits).code_book, weights.packing) / self.factor

    @property
    def values(self) -> Form:
        """The form but for its packing, which changes no value."""
        return replace(self, weights=self.weights.model_copy(update={"packing": "bits"}))

    @property
    def words(self) -> str:
        """Such as "4 bits, groups of 64"."""
        share = {"per_tensor": "a scale a matrix", "per_channel": "a scale a row"}.get(self.weights.granularity)
        grid = "" if self.weights.grid in ("binary", "integer") else f" ({self.weights.grid})"
        factored = "" if self.whole else f"factors of 1/{self.factor} in "
        return f"{factored}{self.bits * self.factor:g} bits{grid}, {share or f'groups of {self.weights.group_size}'}"

    def factors_of(self, matrix: Matrix) -> Factors:
        """The shapes of a matrix's factors.

        Raises:
            AbridgedError: it is too small to have any.
        """
        return candidates(matrix, _low_rank({matrix.name: self.factor}))[0]


Assignment = Mapping[str, Form]  #: the form of each matrix that is planned, by its name


def forms_of(matrices: Iterable[Matrix], usual: Mapping[str, WeightSettings], factors: bool) -> dict[str, list[Form]]:
    """All forms of each matrix, the first of them whole; `factors`: whether it may be factored."""
    offered = {settings: _offered(settings, factors) for settings in {usual[m.name]: None for m in matrices}}
    return {m.name: [form for form in offered[usual[m.name]] if _fits(m, form)] for m in matrices}


def _offered(settings: WeightSettings, factors: bool) -> list[Form]:
    found = [Form(own) for own in forms(settings, GROUP_SIZES)]
    # singular vectors lie around 0, and their rows are short: zero points and groups would gain nothing
    thin = [own for own in forms(settings, (None,)) if own.symmetric and own.group_size is None] if factors else []
    return [*found, *(Form(own, factor) for factor in FACTORS for own in thin)]


def _fits(matrix: Matrix, form: Form) -> bool:
    """Whether there are such factors, and the groups divide the rows."""
    try:
        if form.whole:
            count_scales(matrix.rows, matrix.columns, matrix.fused, form.weights)
        else:
            shapes = form.factors_of(matrix)
            for rows, columns in (shapes.left_weight, shapes.right_weight):
                count_scales(rows, columns, 1, form.weights)
    except AbridgedError:
        return False
    return True


def quantizing(recipe: Recipe) -> list[tuple[int, Quantize]]:
    """The stages that quantise, by number, and their settings."""
    return [
        (number, method)
        for number, stage in enumerate(recipe.stages)
        for method in stage.methods.values()
        if isinstance(method, Quantize)
    ]


def assigned(recipe: Recipe, assignment: Assignment) -> Recipe:
    """A recipe whose last stage that quantises stores matrices in the forms that they are given, by name; what it says
    of others stays. They are factored where anything is first quantised."""
    (first, _), (last, quantize) = quantizing(recipe)[0], quantizing(recipe)[-1]
    stages = list(recipe.stages)
    own = {name if form.whole else f"{name}.*": form.weights for name, form in assignment.items()}
    changed = quantize.model_copy(update={"exceptions": {**own, **quantize.exceptions}})
    stages[last] = stages[last].model_copy(update={"methods": {**stages[last].methods, quantize.name: changed}})
    if factored := {name: form.factor for name, form in assignment.items() if not form.whole}:
        methods = {Kronecker.name: _low_rank(factored), **stages[first].methods}
        stages[first] = stages[first].model_copy(update={"methods": methods})
    return recipe.model_copy(update={"stages": stages})


def assignment_of(recipe: Recipe) -> dict[str, Form]:
    """The forms that `assigned` has written into a recipe, and what else its last stage that quantises makes exceptions
    of."""
    found = [stage.methods[Kronecker.name] for stage in recipe.stages if Kronecker.name in stage.methods]
    factors = dict(found[0].factors) if found else {}
    exceptions = quantizing(recipe)[-1][1].exceptions
    return {
        name: Form(own, int(factors[name])) if pattern != name else Form(own)
        for pattern, own in exceptions.items()
        for name in [pattern.removesuffix(".*") if pattern.removesuffix(".*") in factors else pattern]
    }


def _low_rank(factors: Mapping[str, float]) -> Kronecker:
    """Products of low rank, of matrices by their names."""
    return Kronecker(form="low_rank", matrices=list(factors), factors=dict(factors))

"""How long a model's file is for any choice of forms, as the format itself counts it.

For each form the tensors of the whole file are listed once, on the meta device, by what packs and loads checkpoints
(`abridged.training.dry.stored_tensors`). A mixed file has, of each matrix, the tensors that its form's list has. So
codes, scales and whatever else a form stores are counted, with norms, biases and the header; no weight is read. What is
counted is the weights' file; config and tokenizer stand beside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from abridged.checkpoint.files import DTYPE_BYTES, file_bytes
from abridged.families.standin import plain_config, skeleton
from abridged.methods.quantization.method import Quantize
from abridged.methods.quantization.settings import WeightSettings
from abridged.recipe import Recipe
from abridged.storage.view import Matrix
from abridged.training.dry import stored_tensors

Assignment = Mapping[str, WeightSettings]  #: the form of each matrix that is planned, by its name
Tensors = dict[str, tuple[str, tuple[int, ...]]]


class Sizes:
    """Counts the bytes of a model's file under a recipe whose matrices may be stored in several forms."""

    def __init__(
        self,
        kind: type,
        config: Any,
        recipe: Recipe,
        matrices: Sequence[Matrix],
        forms: Mapping[str, Sequence[WeightSettings]],
    ) -> None:
        """forms: of each matrix, by its name.

        Raises AbridgedError where the recipe does not fit the model.
        """
        self._paths = {m.name: tuple(f"{path}." for path in (m.name, *m.tied)) for m in matrices}
        self._own: dict[str, dict[WeightSettings, Tensors]] = {name: {} for name in self._paths}
        model = skeleton(kind, plain_config(config))
        for form in dict.fromkeys(form for own in forms.values() for form in own):
            assignment = {name: form if form in own else own[0] for name, own in forms.items()}
            tensors = stored_tensors(copy.deepcopy(model), assigned(recipe, assignment))
            for name, paths in self._paths.items():
                self._own[name][assignment[name]] = {n: t for n, t in tensors.items() if n.startswith(paths)}
            self._rest = {n: t for n, t in tensors.items() if not n.startswith(tuple(sum(self._paths.values(), ())))}

    def of(self, name: str, form: WeightSettings) -> int:
        """Bytes of all tensors of one matrix, bias included."""
        return sum(math.prod(shape) * DTYPE_BYTES[dtype] for dtype, shape in self._own[name][form].values())

    def file_bytes(self, assignment: Assignment) -> int:
        """Bytes of the file."""
        tensors = dict(self._rest)
        for name, form in assignment.items():
            tensors |= self._own[name][form]
        return file_bytes(tensors)


def last_quantize(recipe: Recipe) -> tuple[int, Quantize] | None:
    """The last stage that quantises, and its settings; None where none does."""
    found = [
        (number, method)
        for number, stage in enumerate(recipe.stages)
        for method in stage.methods.values()
        if isinstance(method, Quantize)
    ]
    return found[-1] if found else None


def assigned(recipe: Recipe, assignment: Assignment) -> Recipe:
    """A recipe whose last stage that quantises stores matrices in the forms that they are given, by name; what it says
    of others stays."""
    found = last_quantize(recipe)
    assert found is not None
    number, method = found
    changed = method.model_copy(update={"exceptions": {**assignment, **method.exceptions}})
    stages = list(recipe.stages)
    stages[number] = stages[number].model_copy(update={"methods": {**stages[number].methods, method.name: changed}})
    return recipe.model_copy(update={"stages": stages})

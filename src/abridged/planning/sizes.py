"""How long a model's file is for any choice of forms, as the format itself counts it.

For each form the tensors of the whole file are listed once, on the meta device, by what packs and loads checkpoints
(`abridged.training.dry.stored`). A mixed file has, of each matrix, the tensors that its form's list has. So codes,
scales and whatever else a form stores are counted, with norms, biases and the header; no weight is read. What is
counted is the weights' file; config and tokenizer stand beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from abridged.checkpoint.files import file_bytes
from abridged.planning.forms import Assignment, Form, assigned
from abridged.recipe import Recipe
from abridged.storage.format import ModuleSpec
from abridged.storage.view import Matrix
from abridged.training.dry import stored

Tensors = dict[str, tuple[str, tuple[int, ...]]]


class Sizes:
    """Counts the bytes of a model's file under a recipe whose matrices may be stored in several forms."""

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        matrices: Sequence[Matrix],
        forms: Mapping[str, Sequence[Form]],
    ) -> None:
        """model: on the meta device, as it is before it is quantised; it stays so. forms: of each matrix, by its name;
        the first of them whole.

        Raises AbridgedError where the recipe does not fit the model.
        """
        self._paths = {m.name: tuple(f"{path}." for path in (m.name, *m.tied)) for m in matrices}
        self._own: dict[str, dict[Form, Tensors]] = {name: {} for name in self._paths}
        self._modules: dict[str, dict[Form, dict[str, ModuleSpec]]] = {name: {} for name in self._paths}
        planned = tuple(sum(self._paths.values(), ()))
        self._model, self._recipe = model, recipe
        for form in dict.fromkeys(form for own in forms.values() for form in own):
            assignment = {name: form if form in own else own[0] for name, own in forms.items()}
            modules, tensors = stored(copy.deepcopy(self._model), assigned(recipe, assignment))
            for name, paths in self._paths.items():
                self._own[name][assignment[name]] = {n: t for n, t in tensors.items() if n.startswith(paths)}
                self._modules[name][assignment[name]] = {
                    path: spec for path, spec in modules.items() if f"{path}.".startswith(paths)
                }
            if any(one.whole for one in assignment.values()):
                self._rest = {n: t for n, t in tensors.items() if not n.startswith(planned)}

    def of(self, name: str, form: Form) -> int:
        """Bytes of all tensors of one matrix, bias included, and about those that the header says of them."""
        return file_bytes(self._own[name][form]) - file_bytes({})

    def modules(self, name: str, form: Form) -> dict[str, ModuleSpec]:
        """How the modules of one matrix are stored, those tied to it among them, by path."""
        return self._modules[name][form]

    def file_bytes(self, assignment: Assignment) -> int:
        """Bytes of the file."""
        if not any(form.whole for form in assignment.values()):  # then something else guards it from a stock load
            return file_bytes(stored(copy.deepcopy(self._model), assigned(self._recipe, assignment))[1])
        tensors = dict(self._rest)
        for name, form in assignment.items():
            tensors |= self._own[name][form]
        return file_bytes(tensors)

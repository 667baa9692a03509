"""What would become of a model, before any of its weights are read: what it is made of, what methods can do, its size.

The size is not estimated: the whole model is made on the meta device, a recipe's methods change it there, its modules
are packed as those of a student are, and the tensors that its file would hold are counted. Only what pruning leaves is
known by its budget alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from abridged import families
from abridged.checkpoint.files import file_bytes
from abridged.checkpoint.pack import specs_of
from abridged.checkpoint.skeleton import build_module, choose_guard, declare_ties, expected_tensors, may_be_missing
from abridged.core.errors import AbridgedError
from abridged.families.standin import plain_config, skeleton
from abridged.methods.base import Method
from abridged.methods.kronecker.attached import candidates, chosen
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.layers import DropLayers
from abridged.methods.pruning.method import Prune
from abridged.methods.quantization.method import Quantize
from abridged.models.described import described
from abridged.recipe import Recipe
from abridged.runtime.kronecker import Factored, build_factored
from abridged.storage.compressed import compressed_of
from abridged.storage.format import (
    AttentionSpec,
    KroneckerSpec,
    ModuleSpec,
    QuantizationSpec,
)
from abridged.storage.view import View
from abridged.training import gates

#: What is tried on a model that is asked about without a recipe.
_TRIED: dict[str, Method] = {
    "quantize": Quantize(),
    "kronecker": Kronecker(),
    "prune": Prune.model_validate({"budget": {"parameters": 0.5}}),
}


def foresee(model: str | Path, recipe: Recipe | None = None) -> dict[str, Any]:
    """What is found in a model, what each method can do with it, and what a recipe would make of its size.

    Returns:
        `model`: see `made_of`. `methods`: {name: None where its gate passes, else a sentence}. `recipe`, where one is
        given: its `name` and see `stored_size`.

    Raises:
        AbridgedError: there is no such model, or no view of it can be derived, or the recipe does not fit it.
    """
    kind, config = described(model)
    view = families.view_of_config(kind, config)
    found: dict[str, Any] = {"model": made_of(kind, config, view), "methods": {}}
    methods = _TRIED if recipe is None else {n: m for stage in recipe.stages for n, m in stage.methods.items()}
    for name, method in methods.items():
        try:
            gates.refuse(kind, config, [method])
            found["methods"][name] = None
        except AbridgedError as error:
            found["methods"][name] = str(error)
    if recipe is not None:
        found["recipe"] = {"name": recipe.name, **stored_size(kind, config, recipe)}
    return found


def made_of(kind: type, config: Any, view: View) -> dict[str, Any]:
    """The view in numbers: `matrices` and their `parameters` by part, `parts` by kind, and what else it says."""
    parameters = sum(p.numel() for p in skeleton(kind, plain_config(config)).parameters())
    parts: dict[str, dict[str, int]] = {}
    for matrix in view.matrices:
        row = parts.setdefault(matrix.part, {"matrices": 0, "parameters": 0})
        row["matrices"] += 1
        row["parameters"] += matrix.rows * matrix.columns
    units = Counter((part.kind, part.units) for part in view.parts)
    return {
        "class": kind.__name__,
        "type": view.model_type,
        "parameters": parameters,
        "dense_bytes": 4 * parameters,
        "matrices": parts,
        "parts": [{"kind": name, "units": count, "parts": number} for (name, count), number in units.items()],
        "heads": view.heads,
        "context": view.context,
        "norms": len(view.norms),
        "streams": [asdict(stream) for stream in view.streams],
        "logits": None if view.logits is None else asdict(view.logits),
        "embedding_scale": view.embedding_scale,
        "uncompressed": view.bare,
        "uncompressed_names": list(view.bare_names),
        "faults": list(view.faults),
    }


def stored_size(kind: type, config: Any, recipe: Recipe) -> dict[str, Any]:
    """`file_bytes` of model.safetensors as a recipe makes it, `ratio` against FP32, and `exact`: false where pruning
    decides, by training, what is left.

    Raises:
        AbridgedError: the recipe does not fit the model.
    """
    model = skeleton(kind, plain_config(config))
    dense = sum(p.numel() for p in model.parameters())
    prunes = [m for stage in recipe.stages for m in stage.methods.values() if isinstance(m, Prune)]
    left = _share_left(prunes[-1], dense) if prunes else 1.0
    count = round(left * file_bytes(stored(model, recipe)[1]))
    return {"file_bytes": count, "ratio": 4 * dense / count, "exact": left == 1.0}


def stored(model: Any, recipe: Recipe) -> tuple[dict[str, ModuleSpec], dict[str, tuple[str, tuple[int, ...]]]]:
    """How each module is stored that a recipe changes, and the safetensors dtype and shape of every tensor of the file,
    nothing pruned away.

    model: as it comes, on the meta device (`skeleton`); it is changed.

    Raises:
        AbridgedError: the recipe does not fit the model.
    """
    with torch.device("meta"):
        for stage in recipe.stages:
            for method in stage.methods.values():
                if isinstance(method, DropLayers | Quantize):
                    without_data(method).build(model, families.view(model), lambda model, tokens=None: None)
                elif isinstance(method, Kronecker):
                    _factor(model, method)
        modules, unquantized = specs_of(model), compressed_of(model).unquantized_dtype or "float32"
        spec = QuantizationSpec(modules=modules, unquantized_dtype=unquantized)
        for path, one in modules.items():
            if isinstance(one, AttentionSpec):
                model.get_submodule(path).attention_quantizers = build_module(one)
            elif not isinstance(one, KroneckerSpec):
                model.set_submodule(path, build_module(one))
        declare_ties(model, spec)
        spec.guard = choose_guard(model, spec) if recipe.has_methods else None
    tensors = expected_tensors(model, spec)
    for name in may_be_missing(model):
        tensors.pop(name, None)
    return modules, tensors


def without_data(method: Method) -> Method:
    """A method that stores the same by a rule that looks for nothing, neither in weights nor in data."""
    if not isinstance(method, Quantize):
        return method
    constant = method.activations.model_copy(update={"initial": "constant"})
    return method.untrained().model_copy(update={"activations": constant})


def _factor(model: Any, method: Kronecker) -> None:
    """Put factored modules into `model`; of several shapes, which are as large, the first."""
    for matrix in chosen(families.view(model), method):
        first: Any = None
        for path in (matrix.name, *matrix.tied):
            old = model.get_submodule(path)
            if isinstance(old, Factored):
                continue
            new = build_factored(
                candidates(matrix, method)[0], isinstance(old, nn.Embedding), getattr(old, "bias", None)
            )
            first = first or new
            for (_, pair), (_, owner) in zip(new.pairs(), first.pairs(), strict=True):
                pair.left.weight, pair.right.weight = owner.left.weight, owner.right.weight
            model.set_submodule(path, new)


def _share_left(method: Prune, parameters: int) -> float:
    """The share of the file that a budget leaves.

    Raises AbridgedError for one that says nothing of a size.
    """
    budget = method.budget
    whole = {"parameters": parameters, "bytes": 4 * parameters}.get(budget.measure)
    if whole is None:
        raise AbridgedError(f"a budget of {budget.measure} says nothing of the size of the file")
    return min(1.0, budget.value if budget.is_share else budget.value / whole)

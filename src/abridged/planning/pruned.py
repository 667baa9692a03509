"""A model with fewer heads and inner units, for a plan to choose bits of; it is cheap to find, and not trained.

Units go by the magnitude of their weights, and what is left makes up for them by least squares on some of the data. So
a plan knows before any training what is left, to the byte. The hidden width and whole blocks stay: without training
they cost more than bits do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from abridged import families
from abridged.core.modes import evaluating
from abridged.data.batch import Batch
from abridged.methods.pruning.method import Prune
from abridged.recipe import Recipe, Stage

SHARES = (0.95, 0.9, 0.8)
"""Of the parameters, embeddings among them, that are tried to be left."""


def pruning(share: float) -> Prune:
    """The method that leaves such a share of the parameters."""
    return Prune.model_validate(
        {"budget": {"parameters": share}, "masks": "magnitude", "structures": ["heads", "ffn"], "reconstruct": True}
    )


def pruned(dense: Any, share: float, batches: Sequence[Batch]) -> Any:
    """A copy of a model that is cut so, and fitted on batches; the original stays as it is.

    Raises:
        AbridgedError: so little cannot be left.
    """

    def calibrate(model: nn.Module, tokens: int | None = None) -> None:
        with torch.no_grad(), evaluating(model):
            for batch in batches:
                model(**batch.to(next(model.parameters()).device).model_inputs, use_cache=False)

    small = copy.deepcopy(dense)
    pruning(share).build(small, families.view(small), calibrate).finish()
    return small


def with_pruning(recipe: Recipe, share: float) -> Recipe:
    """A recipe that begins with it."""
    first = recipe.stages[0]
    training = first.training.model_copy(update={"steps": 0, "epochs": None})
    words = f"heads and inner units to {share:.0%} of the parameters"
    methods: dict[str, Any] = {Prune.name: pruning(share)}
    stage = Stage(name=words, methods=methods, objectives={}, training=training)
    return recipe.model_copy(update={"stages": [stage, *recipe.stages]})


def without_pruning(recipe: Recipe) -> tuple[Recipe, float]:
    """A recipe that `with_pruning` made, without its first stage, and the share that it leaves; else itself and 1."""
    first = recipe.stages[0].methods
    if list(first) != [Prune.name] or len(recipe.stages) == 1:
        return recipe, 1.0
    return recipe.model_copy(update={"stages": recipe.stages[1:]}), float(first[Prune.name].budget.parameters)


def on_meta(model: Any) -> Any:
    """A copy whose parameters have sizes and no values; what is tied stays tied."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, dict(empty))

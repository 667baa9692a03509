"""What a model is made of: one view of every model, derived by watching a stand-in of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from abridged.core.errors import AbridgedError
from abridged.storage.compressed import compressed_of
from abridged.storage.view import Matrix, Part, View

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Matrix", "Part", "View", "refuse_uncompressed", "view", "view_of_config", "whole_view"]

#: The largest share of a model's weights that may stay as it is without being asked.
MOST_BARE = 0.05
#: Views that were derived, by class and config.
_KNOWN: dict[str, View] = {}


def view(model: PreTrainedModel) -> View:
    """Describe `model` as it is now: its matrices, or their factors, at their sizes, embeddings and attention modules.

    Raises:
        AbridgedError: no view can be derived of it, or its sizes do not fit each other.
    """
    from abridged.families.resized import refined, resized

    found, shapes = whole_view(model), compressed_of(model).shapes
    return refined(found if shapes is None else resized(found, shapes), model)


def whole_view(model: PreTrainedModel) -> View:
    """Describe what `model` is before it is cut or factored: as its checkpoint says, or as its class and config do."""
    if (recorded := compressed_of(model).view) is not None:
        return recorded
    found = view_of_config(type(model), model.config)
    own = untied(model, [f"{path}.weight" for matrix in found.matrices for path in matrix.tied])
    return view_of_config(type(model), model.config, own) if own else found


def untied(model: PreTrainedModel, usual: Iterable[str]) -> frozenset[str]:
    """Those of the weights that class and config tie to others, `usual`, which a model has of its own.

    transformers leaves them so where a checkpoint has both with different values, as those of T5 1.1 do, whose configs
    cannot say it.
    """
    tied = tuple({f"{name.rpartition('.')[0]}." for name in getattr(model, "all_tied_weights_keys", usual)})
    return frozenset(name for name in usual if name.endswith(".weight") and not name.startswith(tied))


def view_of_config(kind: type, config: Any, untied: frozenset[str] = frozenset()) -> View:
    """Describe the stock model of a class of transformers and a config, without its weights.

    untied: weights that class and config tie to others, and that the model has of its own all the same.

    Raises:
        AbridgedError: no view can be derived of it.
    """
    import torch

    from abridged.families.derive import derive
    from abridged.families.standin import plain_config

    key = kind.__name__ + json.dumps(plain_config(config).to_dict(), sort_keys=True, default=str) + str(sorted(untied))
    if key not in _KNOWN:
        # transformers loads a checkpoint within a context of the meta device; gradients tell units
        with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
            _KNOWN[key] = derive(kind, config, untied)
    return _KNOWN[key]


def refuse_uncompressed(view: View) -> None:
    """Raise AbridgedError, in one sentence, for a model of which no method reaches more than 5 % of the weights."""
    if view.bare > MOST_BARE:
        what = "experts" if any("expert" in name for name in view.bare_names) else view.bare_names[0]
        share = f"{100 * view.bare:.0f} % of its weights would stay as they are"
        raise AbridgedError(
            f"the {what} of {view.model_type} are not compressed yet: {share} (--allow-uncompressed goes on)"
        )

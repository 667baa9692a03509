"""What each model family is made of: one file per family, one anatomy per model."""

from importlib import import_module
from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix, Part
from abridged.families.resized import resized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SUPPORTED", "Anatomy", "Matrix", "Part", "anatomy_of"]

#: transformers' `model_type` -> the module whose `anatomy(model)` describes it.
_FAMILIES = {
    "bart": "abridged.families.bart",
    "bert": "abridged.families.bert",
    "gpt2": "abridged.families.gpt2",
    "llama": "abridged.families.llama",
    "mbart": "abridged.families.bart",
    "mistral": "abridged.families.llama",
    "pegasus": "abridged.families.bart",
    "qwen2": "abridged.families.llama",
    "roberta": "abridged.families.bert",
}

SUPPORTED = tuple(_FAMILIES)


def anatomy_of(model: "PreTrainedModel") -> Anatomy:
    """Describe `model` as it is now: its matrices, or their factors, at their sizes, embeddings and attention modules.

    Raises:
        AbridgedError: no family is known for the model's `model_type`, or its sizes do not fit each other.
    """
    model_type = model.config.model_type
    if model_type not in _FAMILIES:
        raise AbridgedError(f"models of type '{model_type}' are not supported; supported: {', '.join(SUPPORTED)}")
    anatomy = import_module(_FAMILIES[model_type]).anatomy(model)
    shapes = getattr(model, "shapes", None)
    if shapes is not None:
        anatomy = resized(anatomy, shapes)
    from abridged.families.factored import refined

    return refined(anatomy, model)

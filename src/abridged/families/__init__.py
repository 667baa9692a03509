"""What each model family is made of: one file per family, one anatomy per model."""

from importlib import import_module
from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SUPPORTED", "Anatomy", "Matrix", "anatomy_of"]

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
    """Describe `model` as it is now: its matrices, or their factors, embeddings and attention modules.

    Raises:
        AbridgedError: no family is known for the model's `model_type`.
    """
    model_type = model.config.model_type
    if model_type not in _FAMILIES:
        raise AbridgedError(f"models of type '{model_type}' are not supported; supported: {', '.join(SUPPORTED)}")
    from abridged.families.factored import refined

    return refined(import_module(_FAMILIES[model_type]).anatomy(model), model)

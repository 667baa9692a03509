"""Modes of a model in training that its config does not save."""

from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model = TypeVar("Model", bound=torch.nn.Module)


def make_trainable(model: Model) -> Model:
    """Let all of a model be trained, but what its class makes itself and never saves: Marian's tables of sines."""
    made = getattr(model, "_keys_to_ignore_on_save", None) or ()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in made)
    return model


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set every dropout of a model, attention's included, without changing the config that is saved."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def set_checkpointing(model: "PreTrainedModel", enabled: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if enabled else 'disable'}")()

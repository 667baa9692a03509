"""Giving matrices low-rank adapters by peft, packed ones among them, and finding those that a model has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from abridged.core.errors import AbridgedError
from abridged.runtime.modules import PackedLinear

if TYPE_CHECKING:
    from abridged.runtime.adapted import AdaptedLinear


def inject(model: nn.Module, paths: Sequence[str], rank: int, alpha: int, dropout: float = 0.0) -> None:
    """Put adapters that change nothing yet (B = 0) around the matrices at `paths`, and leave what is trained as it was.

    Raises:
        AbridgedError: peft is not installed, or a matrix is stored in a way that it cannot adapt.
    """
    if not paths:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model

        from abridged.runtime.adapted import AdaptedLinear
    except ImportError:
        raise AbridgedError('adapters need the peft package: pip install "abridged[lora]"') from None
    for path in paths:
        if not isinstance(model.get_submodule(path), nn.Linear | Conv1D | PackedLinear):
            raise AbridgedError(
                f"{path} is no full-precision and no packed matrix: give it adapters before other methods"
            )
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(paths),
        fan_in_fan_out=any(isinstance(model.get_submodule(path), Conv1D) for path in paths),
    )
    config._register_custom_module({PackedLinear: AdaptedLinear})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")  # to peft, which is told what serves it
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():  # peft has frozen them, which is its caller's business
        is_new = "lora_" in name
        parameter.requires_grad_(is_new or trainable.get(name.replace(".base_layer.", "."), False))
    model.__dict__.pop("peft_config", None)  # the adapters are the model's own from now on


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The packed layers that have adapters, by the path of the layer."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), PackedLinear):
            found[path] = module
    return found

"""Low-rank adapters: what is left of a pruned model recovers while its own weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from abridged.errors import AbridgedError
from abridged.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from abridged.methods.base import Calibrate


class Lora(Method):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) through `peft`: W + (alpha / rank)·BA, added up after the stage.

    A stage has it beside `training.freeze_weights: true`; `training.learning_rates.adapter` is the rate of A and B.
    Nothing of it is stored: the model afterwards has the shapes that it had before.
    """

    untrained_name: ClassVar[str] = "without training"

    rank: int = Field(default=8, ge=1, description="columns of B and rows of A")
    alpha: int = Field(default=16, ge=1, description="the adapters' sum counts alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' input")
    matrices: list[Literal["attention", "ffn", "pooler"]] = Field(
        default=["attention", "ffn"], min_length=1, description="the matrices that get adapters"
    )

    def prepare(self, model: nn.Module, anatomy: Any, calibrate: Calibrate) -> None:
        """Give the matrices adapters that change nothing yet (B = 0).

        Raises AbridgedError where peft is not installed, or a matrix is stored in another way already.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise AbridgedError('methods.lora needs the peft package: pip install "abridged[lora]"') from None
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        paths = [matrix.name for matrix in anatomy.matrices if matrix.part in self.matrices]
        for path in paths:
            if not isinstance(model.get_submodule(path), nn.Linear | Conv1D):
                raise AbridgedError(f"methods.lora: {path} is no full-precision matrix: use it before other methods")
        if not paths:
            raise AbridgedError(f"methods.lora: the model has no {' and no '.join(self.matrices)} matrix")
        trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in paths)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=paths,
            fan_in_fan_out=transposed,
        )
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():  # peft has frozen them, which is the stage's business
            parameter.requires_grad_(trainable.get(name.replace(".base_layer.", "."), True))

    def finish(self, model: nn.Module) -> None:
        """Add the adapters to the matrices and take them away."""
        for path, layer in _adapted(model).items():
            layer.merge()
            model.set_submodule(path, layer.get_base_layer())
        model.__dict__.pop("peft_config", None)

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """A and B, as `adapter`."""
        layers = _adapted(model).values()
        return {"adapter": [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]}


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Every matrix with adapters, by path."""
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLayer)}

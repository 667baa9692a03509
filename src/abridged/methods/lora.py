"""Low-rank adapters: what is left of a pruned model recovers while its own weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from abridged.core.errors import AbridgedError
from abridged.methods.base import Attached, Method, Needs

if TYPE_CHECKING:
    from torch import nn

    from abridged.families import View
    from abridged.methods.base import Calibrate
    from abridged.storage.compressed import Compressed


class Lora(Method):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) through `peft`: W + (alpha / rank)·BA, added up after the stage.

    A stage has it beside `training.freeze_weights: true`; `training.learning_rates.adapter` is the rate of A and B.
    Nothing of it is stored: the model afterwards has the shapes that it had before.
    """

    name: ClassVar[str] = "lora"
    attached: ClassVar[str] = "abridged.methods.lora:Adapters"
    untrained_name: ClassVar[str] = "without training"
    stores: ClassVar[bool] = False

    rank: int = Field(default=8, ge=1, description="columns of B and rows of A")
    alpha: int = Field(default=16, ge=1, description="the adapters' sum counts alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' input")
    matrices: list[Literal["attention", "ffn", "pooler"]] = Field(
        default=["attention", "ffn"], min_length=1, description="the matrices that get adapters"
    )

    @property
    def needs(self) -> Needs:
        """Gradients: adapters that are not trained add nothing."""
        return "gradients"

    def untrained(self) -> Lora:
        """Adapters that add nothing."""
        return self


class Adapters(Attached):
    """See `Lora`. It keeps the paths of the matrices that have adapters."""

    def __init__(self, settings: Lora, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        """Give the matrices adapters that change nothing yet (B = 0).

        Raises AbridgedError where peft is not installed, or a matrix is stored in another way already.
        """
        super().__init__(settings, model, view, calibrate)
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise AbridgedError('methods.lora needs the peft package: pip install "abridged[lora]"') from None
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        self.paths = [matrix.name for matrix in view.matrices if matrix.part in settings.matrices]
        for path in self.paths:
            if not isinstance(model.get_submodule(path), nn.Linear | Conv1D):
                raise AbridgedError(f"methods.lora: {path} is no full-precision matrix: use it before other methods")
        if not self.paths:
            raise AbridgedError(f"methods.lora: the model has no {' and no '.join(settings.matrices)} matrix")
        trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in self.paths)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=self.paths,
            fan_in_fan_out=transposed,
        )
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():  # peft has frozen them, which is the stage's business
            parameter.requires_grad_(trainable.get(name.replace(".base_layer.", "."), True))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """A and B, as `adapter`."""
        layers = [self.model.get_submodule(path) for path in self.paths]
        return {"adapter": [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]}

    def finish(self) -> Compressed:
        """Add the adapters to the matrices and take them away."""
        for path in self.paths:
            layer = self.model.get_submodule(path)
            layer.merge()
            self.model.set_submodule(path, layer.get_base_layer())
        self.model.__dict__.pop("peft_config", None)
        return super().finish()

"""Low-rank adapters: a model learns, or what is left of a pruned one recovers, while its weights stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from abridged.core.errors import AbridgedError
from abridged.methods.base import Attached, Method, Needs

if TYPE_CHECKING:
    from torch import nn

    from abridged.families import View
    from abridged.methods.base import Calibrate
    from abridged.storage.compressed import Compressed


class Lora(Method):
    """LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) through `peft`: W + (alpha / rank)·BA; norms and biases with it, or
    alone (BitFit, Ben Zaken et al., ACL 2022, arXiv 2106.10199).

    A stage has it beside `training.freeze_weights: true`; `training.learning_rates.adapter` is the rate of A and B, and
    `learning_rates.norm` that of norms and biases. Of a model in full precision A and B are added up after the stage,
    and it has the shapes that it had before. Of a packed model W stays in its codes, and they stay beside it, in FP32.
    """

    name: ClassVar[str] = "lora"
    attached: ClassVar[str] = "abridged.methods.lora:Adapters"
    untrained_name: ClassVar[str] = "without training"
    stores: ClassVar[bool] = False
    adapts: ClassVar[bool] = True

    rank: int = Field(default=8, ge=1, description="columns of B and rows of A")
    alpha: int = Field(default=16, ge=1, description="the adapters' sum counts alpha / rank times")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' input")
    matrices: list[Literal["attention", "ffn", "pooler"]] = Field(
        default=["attention", "ffn"], description="the matrices that get adapters; none where norms are trained alone"
    )
    norms: bool = Field(default=False, description="also train the model's vectors: norms and biases")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Lora:
        if not self.matrices and not self.norms:
            raise ValueError("with no matrices and no norms there is nothing to train")
        return self

    @property
    def needs(self) -> Needs:
        """Gradients: adapters that are not trained add nothing."""
        return "gradients"

    def untrained(self) -> Lora:
        """Adapters that add nothing."""
        return self

    def parameters(self, view: View) -> int:
        """The numbers of A and B."""
        return sum(self.rank * (m.rows + m.columns) for m in view.matrices if m.part in self.matrices)


class Adapters(Attached):
    """See `Lora`. It keeps the paths of the matrices that have adapters, and the vectors that are trained with them."""

    def __init__(self, settings: Lora, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        """Give the matrices adapters that change nothing yet (B = 0).

        Raises AbridgedError where peft is not installed, or a matrix is stored in another way already.
        """
        from abridged.runtime.adapters import inject
        from abridged.runtime.modules import fixed_tensors

        super().__init__(settings, model, view, calibrate)
        self.paths = [matrix.name for matrix in view.matrices if matrix.part in settings.matrices]
        if settings.matrices and not self.paths:
            raise AbridgedError(f"methods.lora: the model has no {' and no '.join(settings.matrices)} matrix")
        fixed = fixed_tensors(model)
        vectors = {name: p for name, p in model.named_parameters() if p.ndim < 2 and id(p) not in fixed}
        self.vectors = list(vectors.values()) if settings.norms else []
        inject(model, self.paths, settings.rank, settings.alpha, settings.dropout)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """A and B, as `adapter`, and norms and biases, where they are trained, as `norm`."""
        layers = [self.model.get_submodule(path) for path in self.paths]
        factors = [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]
        groups = {"adapter": factors, "norm": self.vectors}
        return {name: parameters for name, parameters in groups.items() if parameters}

    def finish(self) -> Compressed:
        """Add the adapters to matrices in full precision, and take them away; beside packed ones they stay."""
        from abridged.runtime.adapters import adapted

        for path in self.paths:
            layer = self.model.get_submodule(path)
            if path not in adapted(self.model):
                layer.merge()
                self.model.set_submodule(path, layer.get_base_layer())
        return super().finish()

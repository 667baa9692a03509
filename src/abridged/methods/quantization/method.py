"""Quantisation as a method of a recipe: settings, and what is done to the model before and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from abridged.methods.base import Method
from abridged.methods.quantization.settings import ActivationSettings, EmbeddingSettings, WeightSettings

if TYPE_CHECKING:
    from torch import nn

    from abridged.methods.base import Calibrate

Settings = TypeVar("Settings", bound=WeightSettings)


class Quantize(Method):
    """Quantisation-aware training (Tao et al., ACL 2022, arXiv 2203.10705, and the methods it is measured against).

    Weights are FP32 masters, quantised afresh at every step. A second stage keeps the masters and what was learned
    about scales and clips as far as the new settings allow, and installs the new bits.
    """

    untrained_name: ClassVar[str] = "round to nearest"

    weights: WeightSettings = Field(default=WeightSettings(), description="the matrices of attention and feed-forward")
    embeddings: EmbeddingSettings = Field(
        default=EmbeddingSettings(), description="token embedding and head; position embeddings stay full precision"
    )
    exceptions: dict[str, WeightSettings] = Field(
        default_factory=dict,
        description="settings like those of weights for matrices that are quantised otherwise, by part (embedding, "
        "positions, head, attention, ffn, pooler), by factor of a part ('embedding.right'), or by a pattern of their "
        "path ('*.c_fc'); the first that fits counts",
    )
    positions: bool = Field(
        default=False, description="quantise learned positions and token types too, as the token embedding is"
    )
    activations: ActivationSettings = Field(default=ActivationSettings(), description="inputs of quantised matrices")
    compensate: bool = Field(
        default=False,
        description="start all matrices but embeddings and head where their rounding errors make up for each "
        "other on some of the data (GPTQ's rounding); for scales that are learned",
    )
    unquantized: Literal["float32", "float16"] = Field(
        default="float32", description="storage of what is not quantised: positions, norms, biases"
    )

    def prepare(self, model: nn.Module, anatomy: Any, calibrate: Calibrate) -> None:
        """Swap the anatomy's matrices for quantised modules and calibrate their activation quantisers.

        Raises AbridgedError for weights that are not finite and for groups that do not fit a matrix.
        """
        from abridged.methods.quantization.prepare import prepare

        prepare(model, anatomy, calibrate, self)

    def finish(self, model: nn.Module) -> None:
        """Round what stays unquantised to the type it is stored in, so that the stored model is the trained one."""
        from abridged.methods.quantization.prepare import round_unquantized

        if self.unquantized == "float16":
            round_unquantized(model)

    def untrained(self) -> Quantize:
        """Round to nearest between the smallest and largest weight; at 1 bit, which has none, by mean and sign."""
        return self.model_copy(
            update={
                "weights": round_to_nearest(self.weights),
                "embeddings": round_to_nearest(self.embeddings),
                "exceptions": {matrices: round_to_nearest(settings) for matrices, settings in self.exceptions.items()},
                "compensate": False,
            }
        )

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The scales ("scale") and the activation clips ("clip")."""
        from abridged.methods.quantization.prepare import parameter_groups

        return parameter_groups(model)


def round_to_nearest(settings: Settings) -> Settings:
    """Settings that store as many bits in the same packing, with a scale that follows from the weights alone."""
    gradients = {"scale_gradient": None, "weight_gradient": None}
    learned = {"initialization": "own", "gamma": "matrix", "center": None, **gradients}
    quantizer = "binary" if settings.bits == 1 else "minmax"
    return settings.model_copy(update={"quantizer": quantizer, "levels": settings.grid_levels, **learned})

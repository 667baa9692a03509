"""Quantisation as a method of a recipe: settings, and what is done to the model before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from pydantic import Field

from abridged.methods.base import Method, Needs, Pass
from abridged.methods.quantization.settings import ActivationSettings, EmbeddingSettings, WeightSettings

if TYPE_CHECKING:
    from abridged.families import View

Settings = TypeVar("Settings", bound=WeightSettings)


class Quantize(Method):
    """Quantisation-aware training (Tao et al., ACL 2022, arXiv 2203.10705, and the methods it is measured against).

    Weights are FP32 masters, quantised afresh at every step. A second stage keeps the masters and what was learned
    about scales and clips as far as the new settings allow, and installs the new bits.
    """

    name: ClassVar[str] = "quantize"
    attached: ClassVar[str] = "abridged.methods.quantization.attached:Quantization"
    untrained_name: ClassVar[str] = "round to nearest"
    by_parts: ClassVar[bool] = True
    renamed: ClassVar[Mapping[str, str]] = {"compensate": "gptq"}

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
    gptq: bool = Field(
        default=False,
        description="start all matrices by GPTQ, where their rounding errors make up for each other on some of the "
        "data, embeddings and head where their scales start weighted; scales that are not learned stay as they were",
    )
    unquantized: Literal["float32", "float16"] = Field(
        default="float32", description="storage of what is not quantised: positions, norms, biases"
    )

    @property
    def needs(self) -> Needs:
        """Inputs, where clips are calibrated or searched on them, or rounding makes up for its errors on them."""
        return "inputs" if self.passes else "nothing"

    @property
    def passes(self) -> frozenset[Pass]:
        clips = self.activations
        calibrated = clips.bits is not None and clips.quantizer == "learned" and clips.initial == "calibrated"
        few: set[Pass] = {"few"} if calibrated else set()
        everywhere = (self.weights, self.embeddings, *self.exceptions.values())
        weighted = any(settings.initialization == "weighted" for settings in everywhere)
        return frozenset({*few, "many"} if self.gptq or weighted else few)

    def within(self, view: View) -> Quantize:
        """Without exceptions for matrices, positions, and GPTQ of what the part does not have."""
        parts = {matrix.part for matrix in view.matrices}
        fitting = {
            pattern: settings
            for pattern, settings in self.exceptions.items()
            if any(matrix.is_called(pattern) for matrix in view.matrices)
        }
        return self.model_copy(
            update={
                "exceptions": fitting,
                "positions": self.positions and "positions" in parts,
                "gptq": self.gptq
                and (bool(parts & {"attention", "ffn", "pooler"}) or self.embeddings.initialization == "weighted"),
            }
        )

    def untrained(self) -> Quantize:
        """Round to nearest between the smallest and largest weight; at 1 bit, which has none, by mean and sign."""
        return self.model_copy(
            update={
                "weights": round_to_nearest(self.weights),
                "embeddings": round_to_nearest(self.embeddings),
                "exceptions": {matrices: round_to_nearest(settings) for matrices, settings in self.exceptions.items()},
                "gptq": False,
            }
        )


def round_to_nearest(settings: Settings) -> Settings:
    """Settings that store as many bits in the same packing, with a scale that follows from the weights alone."""
    gradients = {"scale_gradient": None, "weight_gradient": None}
    learned = {"initialization": "own", "gamma": "matrix", "center": None, **gradients}
    quantizer = "binary" if settings.bits == 1 else "minmax"
    return settings.model_copy(update={"quantizer": quantizer, "levels": settings.grid_levels, **learned})

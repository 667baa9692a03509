"""The settings of quantisation, as a recipe writes them; torch is not needed to read or check them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from abridged.core.settings import Settings
from abridged.methods.quantization.quantizers import QUANTIZERS, GridName, Levels, Quantizer

if TYPE_CHECKING:
    QuantizerName = str
else:
    QuantizerName = Literal[tuple(QUANTIZERS)]


Granularity = Literal["per_tensor", "per_channel", "per_group"]

#: What recipes called granularities before; they may still do so.
_GRANULARITIES = {"tensor": "per_tensor", "row": "per_channel", "group": "per_group"}


class WeightSettings(Settings):
    """How a set of weight matrices is quantised."""

    model_config = ConfigDict(frozen=True)

    bits: Literal[1, 2, 3, 4, 5, 6, 8] | None = Field(
        default=2, description="bits a weight; null leaves full precision"
    )
    quantizer: QuantizerName = Field(
        default="dynamic",
        description="; ".join(f"{name}: {kind.description}" for name, kind in QUANTIZERS.items()),
    )
    granularity: Granularity = Field(
        default="per_tensor",
        description="weights that share a scale: the matrix (per_tensor; Q, K and V count as three), an output row "
        "(per_channel), or neighbours in a row (per_group)",
    )
    group_size: int | None = Field(
        default=None, ge=1, description="neighbours in a row that share a scale, for per_group"
    )
    levels: Levels | None = Field(
        default=None,
        description="2 bits only: ternary -α, 0, α, the balanced four levels ±α/4, ±3α/4, or llama.cpp's q2_0 -d, 0, "
        "d, 2d, d of either sign (lsq and minmax; with group_size 64 what its type holds); null: the quantiser's own "
        "(balanced for paretoq, ternary otherwise)",
    )
    symmetric: bool = Field(
        default=True, description="levels around 0; false: all that the bits hold, with a zero point beside each scale"
    )
    initialization: Literal["own", "least_squares", "weighted"] = Field(
        default="own",
        description="where a learned scale starts: by the quantiser's own rule, at the least squared error, or at the "
        "least one weighted by the second moments of what the weights are multiplied with",
    )
    gamma: Literal["matrix", "scale"] = Field(
        "matrix", description="dynamic only: one learned γ for a matrix, as published, or one for each of its scales"
    )
    rounding: Literal["nearest", "learned"] = Field(
        default="nearest",
        description="what training moves: the weights, or what is added to them before rounding, in scales, at the "
        "rate of the group rounding (AutoRound): one rate fits all weights",
    )
    scale_gradient: Literal["full", "clipped_only"] | None = Field(
        default=None,
        description="weights that move a learned scale: all, or only those beyond the clip; null: the quantiser's "
        "own (clipped_only for pact, full otherwise)",
    )
    weight_gradient: Literal["clipped", "straight_through"] | None = Field(
        default=None,
        description="gradient of weights beyond the clip: none, or as if they were inside; null: the quantiser's "
        "own (clipped where the scale is learned and above 1 bit, and for paretoq; straight_through otherwise)",
    )
    center: bool | None = Field(
        default=None,
        description="quantise w-μ with μ the mean under each scale (μ is not stored); null: the quantiser's own "
        "(yes at 1 bit except paretoq, and for tbt)",
    )
    scale_dtype: Literal["float32", "float16"] = Field(default="float32", description="how a scale is stored")
    packing: Literal["bits", "base3"] = Field(
        default="bits", description="how codes are stored: in their bits, or ternary ones five to a byte"
    )

    @field_validator("granularity", mode="before")
    @classmethod
    def _as_renamed(cls, value: Any) -> Any:
        return _GRANULARITIES.get(value, value) if isinstance(value, str) else value

    @property
    def kind(self) -> type[Quantizer]:
        """The quantiser that these are settings of."""
        return QUANTIZERS[self.quantizer]

    @property
    def grid(self) -> GridName:
        """The shape of the set of levels."""
        if not self.symmetric:
            return "affine"
        if self.bits == 1:
            return "binary"
        return (self.levels or self.kind.levels[0]) if self.bits == 2 else "integer"

    @property
    def grid_levels(self) -> Levels | None:
        """What `levels` must be for another quantiser to have this one's grid."""
        return self.grid if self.grid in ("ternary", "balanced", "q2_0") else None

    @property
    def centered(self) -> bool:
        own = self.symmetric and self.bits in self.kind.centred_at
        return own if self.center is None else self.center

    @property
    def clips_weight_gradient(self) -> bool:
        own = self.bits in self.kind.clips_at
        return own if self.weight_gradient is None else self.weight_gradient == "clipped"

    @property
    def full_scale_gradient(self) -> bool:
        return self.kind.full_scale_gradient if self.scale_gradient is None else self.scale_gradient == "full"

    @model_validator(mode="after")
    def _check(self) -> WeightSettings:
        kind = self.kind
        if self.bits is not None and self.bits not in kind.bits:
            offered = " or ".join(map(str, kind.bits))
            raise ValueError(f"the quantizer {kind.name} has no {self.bits}-bit form: bits must be {offered}")
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError("granularity per_group and group_size are given together or not at all")
        if not self.symmetric:
            self._check_affine()
        if self.levels is not None and self.bits != 2:
            raise ValueError(f"levels is a choice at 2 bits only, not at {self.bits}")
        if self.levels is not None and self.levels not in kind.levels:
            raise ValueError(
                f"the quantizer {kind.name} is {' or '.join(kind.levels)} at 2 bits: levels cannot be {self.levels}"
            )
        if self.levels == "q2_0" and self.center:
            raise ValueError("levels: q2_0 goes without center")
        if self.packing == "base3" and self.bits is not None and self.grid != "ternary":
            raise ValueError("packing base3 stores ternary levels only: use bits: 2 with levels: ternary")
        if self.gamma != "matrix" and not kind.gamma_by_scale:
            having = " and ".join(name for name, other in QUANTIZERS.items() if other.gamma_by_scale)
            raise ValueError(f"gamma is a choice of the quantizer {having}, not of {kind.name}")
        if not kind.learned and (self.initialization != "own" or self.scale_gradient is not None):
            raise ValueError(
                f"the quantizer {kind.name} learns no scale: initialization and scale_gradient do not apply"
            )
        return self

    def _check_affine(self) -> None:
        having = " and ".join(name for name, other in QUANTIZERS.items() if other.affine)
        if not self.kind.affine:
            raise ValueError(f"symmetric: false is a choice of the quantizers {having}, not of {self.kind.name}")
        if self.bits == 1 or self.levels is not None or self.center:
            raise ValueError("symmetric: false needs 2 bits or more, and goes without levels and center")


class EmbeddingSettings(WeightSettings):
    """How embeddings, and the output head, are quantised: one scale for each token unless said otherwise."""

    granularity: Granularity = Field(
        default="per_channel",
        description="weights that share a scale: the matrix, a token's row (per_channel), or a group within a row",
    )


class ActivationSettings(Settings):
    """How the inputs of quantised matrix products are quantised."""

    model_config = ConfigDict(frozen=True)

    bits: Literal[1, 4, 8] | None = Field(
        default=8, description="bits an activation; null leaves full precision, 1 needs quantizer: learned"
    )
    quantizer: Literal["learned", "dynamic"] = Field(
        default="learned", description="learned: a trained clip for each input; dynamic: each token's own largest value"
    )
    initial: Literal["calibrated", "constant"] = Field(
        default="calibrated",
        description="where a learned clip starts; a calibrated one learns at a rate relative to its size",
    )
    constant: float = Field(default=2.5, gt=0, description="the clip's start for initial: constant (QuantGPT's 2.5)")
    calibration: Literal["percentile", "least_squares"] = Field(
        default="percentile", description="how a calibrated clip is chosen from the values seen before the stage"
    )
    percentile: float = Field(default=99.9, gt=50, le=100, description="for calibration: percentile, in per cent")
    clip_gradient: Literal["full", "clipped_only"] = Field(
        default="clipped_only", description="values that move a clip: only those beyond it (PACT), or all (LSQ)"
    )
    attention: bool = Field(
        default=False, description="quantise Q, K, V and the attention probabilities too (rules out fused attention)"
    )

    @model_validator(mode="after")
    def _one_bit_is_learned(self) -> ActivationSettings:
        if self.bits == 1 and self.quantizer == "dynamic":
            raise ValueError("activations in 1 bit need quantizer: learned")
        return self

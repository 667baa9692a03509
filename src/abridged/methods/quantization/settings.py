"""The settings of quantisation, as a recipe writes them; torch is not needed to read or check them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

QuantizerName = Literal["dynamic", "lsq", "pact", "laq", "twn", "minmax", "paretoq", "binary", "tbt"]

LEARNED = ("dynamic", "lsq", "pact", "paretoq")
"""Quantisers whose scale is trained; the others compute it from the weights at every step."""

_BITS = {"binary": (1,), "tbt": (1, 2), "twn": (2,), "minmax": (2, 4, 8)}
"""Bit widths of the quantisers that do not have all four."""


class WeightSettings(BaseModel):
    """How a set of weight matrices is quantised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bits: Literal[1, 2, 4, 8] | None = Field(default=2, description="bits a weight; null leaves full precision")
    quantizer: QuantizerName = Field(
        default="dynamic",
        description="dynamic: scale γ·mean|w|, γ learned (QuantGPT); lsq: learned step; pact: learned clip; "
        "laq: alternating least squares; twn: ternary by threshold; minmax: round to nearest; paretoq: learned "
        "scale on ParetoQ's grids; binary: mean|w−μ|·sign(w−μ); tbt: statistics around the mean (TBT)",
    )
    granularity: Literal["tensor", "row", "group"] = Field(
        default="tensor",
        description="weights that share a scale: the matrix (Q, K and V count as three), an output row, or a group",
    )
    group_size: int | None = Field(default=None, ge=1, description="neighbours in a row that share a scale, for group")
    levels: Literal["ternary", "balanced"] | None = Field(
        default=None,
        description="2 bits only: ternary -α, 0, α, or the balanced four levels ±α/4, ±3α/4; null: the quantiser's "
        "own (balanced for paretoq, ternary otherwise)",
    )
    initialization: Literal["own", "least_squares"] = Field(
        default="own",
        description="where a learned scale starts: by the quantiser's own rule, or at the least squared error",
    )
    gamma: Literal["matrix", "scale"] = Field(
        "matrix", description="dynamic only: one learned γ for a matrix, as published, or one for each of its scales"
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

    @property
    def grid(self) -> Literal["binary", "ternary", "balanced", "integer"]:
        """The shape of the set of levels."""
        if self.bits == 1:
            return "binary"
        if self.bits == 2:
            return self.levels or ("balanced" if self.quantizer == "paretoq" else "ternary")
        return "integer"

    @property
    def grid_levels(self) -> Literal["ternary", "balanced"] | None:
        """What `levels` must be for another quantiser to have this one's grid."""
        return self.grid if self.grid in ("ternary", "balanced") else None

    @property
    def centered(self) -> bool:
        own = self.quantizer == "tbt" or (self.bits == 1 and self.quantizer != "paretoq")
        return own if self.center is None else self.center

    @property
    def clips_weight_gradient(self) -> bool:
        own = self.quantizer in LEARNED and (self.bits != 1 or self.quantizer == "paretoq")
        return own if self.weight_gradient is None else self.weight_gradient == "clipped"

    @property
    def full_scale_gradient(self) -> bool:
        return (self.quantizer != "pact") if self.scale_gradient is None else self.scale_gradient == "full"

    @model_validator(mode="after")
    def _check(self) -> WeightSettings:
        widths = _BITS.get(self.quantizer, (1, 2, 4, 8))
        if self.bits is not None and self.bits not in widths:
            offered = " or ".join(map(str, widths))
            raise ValueError(f"the quantizer {self.quantizer} has no {self.bits}-bit form: bits must be {offered}")
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("granularity group and group_size are given together or not at all")
        if self.levels is not None and self.bits != 2:
            raise ValueError(f"levels is a choice at 2 bits only, not at {self.bits}")
        if self.levels == "balanced" and self.quantizer in ("twn", "tbt"):
            raise ValueError(f"the quantizer {self.quantizer} is ternary at 2 bits: levels cannot be balanced")
        if self.packing == "base3" and self.bits is not None and self.grid != "ternary":
            raise ValueError("packing base3 stores ternary levels only: use bits: 2 with levels: ternary")
        if self.gamma != "matrix" and self.quantizer != "dynamic":
            raise ValueError(f"gamma is a choice of the quantizer dynamic, not of {self.quantizer}")
        if self.quantizer not in LEARNED and (self.initialization != "own" or self.scale_gradient is not None):
            raise ValueError(
                f"the quantizer {self.quantizer} learns no scale: initialization and scale_gradient do not apply"
            )
        return self


class EmbeddingSettings(WeightSettings):
    """How embeddings, and the output head, are quantised: one scale for each token unless said otherwise."""

    granularity: Literal["tensor", "row", "group"] = Field(
        default="row", description="weights that share a scale: the matrix, a token's row, or a group within a row"
    )


class ActivationSettings(BaseModel):
    """How the inputs of quantised matrix products are quantised."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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

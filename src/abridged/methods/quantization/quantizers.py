"""The weight quantisers: each is a rule for the scale of a line of weights, over one common rounding.

A matrix comes as lines (num_scales, elements). `fit` gives what the rounding needs, `forward` the fake-quantised
lines, `levels` the integers that are stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abridged.methods.quantization.fake import FakeQuantize, ScaleGradient, StoredScale, make_grid, round_to_levels_
from abridged.methods.quantization.least_squares import least_squares_scale
from abridged.methods.quantization.settings import WeightSettings

LAQ_ALTERNATIONS = 10

LAQ_START = {"ternary": 1.53, "quaternary": 0.62, "int4": 0.42, "int8": 0.039}
"""Scale over mean|w| from which LAQ alternates: the optimum for normally distributed weights (Max, 1960)."""


class Fit(NamedTuple):
    """How lines are quantised; each (num_scales, 1)."""

    scale: Tensor
    step: Tensor | None = None  # what weights are divided by, where it is not the scale
    center: Tensor | None = None


class Quantizer(nn.Module):
    """Quantises lines of weights (num_scales, elements) with a scale for each; subclasses give the scale's rule."""

    def __init__(self, settings: WeightSettings) -> None:
        super().__init__()
        assert settings.bits is not None
        self.settings = settings
        self.grid = make_grid(settings.grid, settings.bits, stretched=settings.quantizer == "paretoq")

    def rule(self, weight: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scale (num_scales, 1), and the step where it differs, for centred lines; gradients to parameters only.

        `index` (lines,) says which of the matrix's lines these are; None: all of them.
        """
        raise NotImplementedError

    def fit(self, weight: Tensor, index: Tensor | None = None) -> Fit:
        """What `forward` needs to quantise these lines (or, given the whole matrix's lines, any part of it)."""
        with torch.no_grad():
            fixed = weight.detach()
            center = fixed.mean(1, keepdim=True) if self.settings.centered else None
            if center is not None:
                fixed = fixed - center
        scale, step = self.rule(fixed, index)
        return Fit(StoredScale.apply(scale, self.settings.scale_dtype == "float16"), step, center)

    def forward(self, weight: Tensor, fit: Fit | None = None) -> Tensor:
        """Fake-quantise lines (num_scales, elements): exactly level * scale, with the settings' gradients."""
        scale, step, center = self.fit(weight) if fit is None else fit
        grid, settings = self.grid, self.settings
        return FakeQuantize.apply(
            weight,
            scale,
            step,
            center,
            grid.top,
            grid.kind == "odd",
            grid.bound,
            settings.clips_weight_gradient,
            settings.full_scale_gradient,
        )

    @torch.no_grad()
    def levels(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The levels (num_scales, elements) int8 and scales (num_scales,) float32 that `forward` multiplies."""
        scale, step, center = self.fit(weight)
        lines = weight if center is None else weight - center
        levels = round_to_levels_(lines / (scale if step is None else step), self.grid.top, self.grid.kind == "odd")
        return levels.to(torch.int8), scale.flatten()

    def take_scale(self, weight: Tensor, scale: Tensor) -> None:
        """Learn on from scales (num_scales, 1) for these lines, as nearly as parameters allow; for `LEARNED` only."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.settings.quantizer}, {self.grid.code_book}, {self.settings.granularity}"


class Dynamic(Quantizer):
    """Module-wise dynamic scaling (QuantGPT, arXiv 2203.10705, section 3.3): clip α = γ·mean|w|, γ learned.

    `gamma` has one entry for each matrix fused in the weight, whatever the granularity, or one for each scale if the
    settings say so; it starts at 1 or where the squared error is least.
    """

    def __init__(self, settings: WeightSettings, weight: Tensor, fused: int) -> None:
        super().__init__(settings)
        # the clip in units of the scale: METHODS' α/n, and α/4 on the balanced grid
        self.clip = 4.0 if settings.grid == "balanced" else float(self.grid.top)
        blocks = len(weight) if settings.gamma == "scale" else fused
        gamma = torch.ones(blocks)
        if settings.initialization == "least_squares":
            center = weight.mean(1, keepdim=True) if settings.centered else 0.0
            lines = weight - center
            base = self._base(lines)
            gamma = least_squares_scale(lines, base, self.grid, groups=blocks).flatten().to(gamma)
        self.gamma = nn.Parameter(gamma.to(weight.device))

    @torch.no_grad()
    def take_scale(self, weight: Tensor, scale: Tensor) -> None:
        base = self._base(weight - weight.mean(1, keepdim=True) if self.settings.centered else weight)
        self.gamma.copy_((scale / base.clamp_min(1e-10)).view(len(self.gamma), -1).mean(1))

    def _base(self, weight: Tensor) -> Tensor:
        return weight.abs().mean(1, keepdim=True) / self.clip

    def rule(self, weight: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            base = self._base(weight)
        blocks = self.gamma.shape[0]
        if self.settings.gamma == "scale":
            gamma = self.gamma.unsqueeze(1)
            return base * (gamma if index is None else nn.functional.embedding(index, gamma)), None
        if blocks == 1:
            return base * self.gamma, None
        return (base.view(blocks, -1) * self.gamma.unsqueeze(1)).view(-1, 1), None


class LearnedScale(Quantizer):
    """LSQ, PACT and ParetoQ: a trained parameter for each line, LSQ's the step and the others' the clip α.

    LSQ (arXiv 1902.08153) starts its step at 2·mean|w|/√Q, with Q the steps on one side of zero; PACT
    (arXiv 1805.06085) starts its clip there too, and both at mean|w| on the binary grid. ParetoQ (arXiv 2502.02631)
    starts at max|w|, at 1 bit at mean|w|. LSQ and ParetoQ divide the parameter's gradient by √(elements·Q).
    """

    def __init__(self, settings: WeightSettings, weight: Tensor) -> None:
        super().__init__(settings)
        grid = settings.grid
        clip = {"balanced": 4.0, "ternary": 1.5 if settings.quantizer == "paretoq" else 1.0}
        self.unit = 1.0 if settings.quantizer == "lsq" else clip.get(grid, float(self.grid.top))  # scales in it
        steps = 1.5 if grid == "balanced" else float(self.grid.top)
        self.gradient_scale = 1.0 if settings.quantizer == "pact" else 1.0 / math.sqrt(weight.shape[1] * steps)

        lines = weight - weight.mean(1, keepdim=True) if settings.centered else weight
        mean = lines.abs().mean(1, keepdim=True)
        if settings.initialization == "least_squares":
            scale = mean * least_squares_scale(lines, mean, self.grid, groups=len(lines))
        elif grid == "binary":
            scale = mean
        elif settings.quantizer == "paretoq":
            scale = lines.abs().amax(1, keepdim=True) / self.unit
        else:
            scale = 2.0 * mean / math.sqrt(steps) / (2.0 if grid == "balanced" else 1.0)  # two scales make a step
        self.scale = nn.Parameter((scale.clamp_min(1e-10) * self.unit).flatten())

    @torch.no_grad()
    def take_scale(self, weight: Tensor, scale: Tensor) -> None:
        self.scale.copy_((scale * self.unit).flatten())

    def rule(self, weight: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale = self.scale.unsqueeze(1) if index is None else nn.functional.embedding(index, self.scale.unsqueeze(1))
        return ScaleGradient.apply(scale, self.gradient_scale) / self.unit, None


class Statistics(Quantizer):
    """LAQ, TWN, min-max, binary and TBT: the scale is computed from the weights at every step, nothing is learned."""

    @torch.no_grad()
    def rule(self, weight: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mean = weight.abs().mean(1, keepdim=True)
        if self.grid.code_book == "binary":  # BinaryConnect's and TBT's closed form, and LAQ's
            return mean, None
        name = self.settings.quantizer
        if name == "laq":
            return self._alternate(weight, mean), None
        if name == "tbt":  # arXiv 2306.01841: α = 4/3·mean|w - μ|
            return mean * (4.0 / 3.0), None
        if name == "twn":  # arXiv 1605.04711: threshold 0.7·mean|w|, α the mean of |w| above it
            threshold = 0.7 * mean
            above = (weight.abs() > threshold).to(weight.dtype)
            scale = (weight.abs() * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_min(1.0)
            return scale, (2.0 * threshold).clamp_min(1e-10)
        clip = 4.0 if self.settings.grid == "balanced" else float(self.grid.top)
        return weight.abs().amax(1, keepdim=True) / clip, None

    def _alternate(self, weight: Tensor, mean: Tensor) -> Tensor:
        """LAQ's (arXiv 1802.08635) alternation with the identity for curvature: α = Σb·w / Σb², b = round(w/α)."""
        odd = self.grid.kind == "odd"
        scale = mean * LAQ_START[self.grid.code_book]
        for _ in range(LAQ_ALTERNATIONS):
            scale = scale.clamp_min(1e-10)
            levels = round_to_levels_(weight / scale, self.grid.top, odd)
            scale = (levels * weight).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True).clamp_min(1.0)
        return scale


def build_quantizer(settings: WeightSettings, weight: Tensor, fused: int) -> Quantizer:
    """A quantiser for lines (num_scales, elements) of a weight that fuses `fused` matrices."""
    if settings.quantizer == "dynamic":
        return Dynamic(settings, weight, fused)
    if settings.quantizer in ("lsq", "pact", "paretoq"):
        return LearnedScale(settings, weight)
    return Statistics(settings)

"""The weight quantisers, one class each: what a quantiser is, as class attributes, and its rule for the scale.

A matrix comes as lines (num_scales, elements), one scale a line, in FP32. All quantisers share one rounding
(`abridged.methods.quantization.fake`); they differ in what is here. To add one is to write its class. Settings are
checked against these classes, so torch is not imported with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from abridged.methods.quantization.settings import WeightSettings

GridName = Literal["binary", "ternary", "balanced", "q2_0", "integer", "affine"]


@dataclass(frozen=True)
class Grid:
    """The levels of a code book, and the range of weight/scale that is not clipped."""

    code_book: str
    top: int  # outermost level
    bound: float  # |weight / scale| at which the clip begins
    kind: str = "integer"  # every integer up to top, "odd" ones, or "affine": from 0, less a zero point
    zeros: tuple[int, int] = (0, 0)  # the least and the largest zero point of an affine grid


def make_grid(name: GridName, bits: int, stretch: float = 1.0, ternary_clip: float = 1.0) -> Grid:
    """The grid of a name; `bits` count for integers.

    The clip α is the outermost level times the scale, but 4/3 of it on the balanced grid (levels ±α/4, ±3α/4), and
    `ternary_clip` of it on the ternary one. Weights count as clipped from `stretch` times the clip. q2_0's levels
    -1, 0, 1, 2, or with a negative scale -2, -1, 0, 1, are four from 0 on less a zero point of 1 or 2.
    """
    if name == "binary":
        return Grid("binary", 1, 1.0, "odd")
    if name == "balanced":
        return Grid("quaternary", 3, 4.0 * stretch, "odd")
    if name == "ternary":
        return Grid("ternary", 1, ternary_clip * stretch)
    if name == "affine":
        return Grid(f"uint{bits}", 2**bits - 1, math.inf, "affine", (0, 2**bits - 1))
    if name == "q2_0":
        return Grid("q2_0", 3, math.inf, "affine", (1, 2))
    top = 2 ** (bits - 1) - 1
    return Grid(f"int{bits}", top, float(top))


Levels = Literal["ternary", "balanced", "q2_0"]

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
"""Bits of a weight that there are code books for."""

QUANTIZERS: dict[str, type[Quantizer]] = {}
"""Every quantiser by its name in recipes."""

LAQ_ALTERNATIONS = 10

LAQ_START = {"ternary": 1.53, "quaternary": 0.62, "int3": 0.82, "int4": 0.42, "int5": 0.24, "int6": 0.13, "int8": 0.039}
"""Scale over mean|w| from which LAQ alternates: the optimum for normally distributed weights (Max, 1960)."""


class Quantizer:
    """A rule for the scales of lines of weights; this one computes them from the weights at every step."""

    name: ClassVar[str] = ""
    description: ClassVar[str] = ""  #: for `abridged recipes --keys`
    bits: ClassVar[tuple[int, ...]] = WIDTHS  #: bit widths that it has
    levels: ClassVar[tuple[Levels, ...]] = ("ternary", "balanced")  #: grids that it has at 2 bits, its own first
    learned: ClassVar[bool] = False  #: whether its scale is trained
    affine: ClassVar[bool] = False  #: whether it may have a zero point beside each scale
    gamma_by_scale: ClassVar[bool] = False  #: whether it has a γ, which may be one for each scale
    centred_at: ClassVar[tuple[int, ...]] = (1,)  #: bits at which the mean under each scale is taken off first
    clips_at: ClassVar[tuple[int, ...]] = ()  #: bits at which weights beyond the clip have no gradient
    full_scale_gradient: ClassVar[bool] = True  #: whether weights inside the clip move a learned scale
    stretch: ClassVar[float] = 1.0  #: share of the clip from which weights count as beyond it
    ternary_clip: ClassVar[float] = 1.0  #: the clip α on the ternary grid, in scales

    def __init_subclass__(cls) -> None:
        if cls.name:
            if not cls.description or not cls.__doc__:
                raise TypeError(f"the quantizer {cls.name} lacks a description")
            QUANTIZERS[cls.name] = cls

    @classmethod
    def grid_of(cls, name: GridName, bits: int) -> Grid:
        """Its levels and clip on a grid."""
        return make_grid(name, bits, cls.stretch, cls.ternary_clip)

    def __init__(self, settings: WeightSettings, lines: Tensor, fused: int) -> None:
        """For lines (num_scales, elements) of a weight that fuses `fused` matrices."""
        assert settings.bits is not None
        self.settings = settings
        self.grid = self.grid_of(settings.grid, settings.bits)
        #: The clip α in scales: 4/3 of the outermost level on the balanced grid.
        self.clip = 4.0 if settings.grid == "balanced" else float(self.grid.top)

    def parameters(self, lines: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        """What is learned, by name, as it starts. `importance`, like the lines, weights errors; None: all alike."""
        return {}

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The scale (num_scales, 1), and the step where it differs, for centred lines; gradients to `learned` only.

        `index` (lines,) says which of the matrix's lines these are; None: all of them.
        """
        raise NotImplementedError

    def zero(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
        """The zero point (num_scales, 1), a whole level, on an affine grid of this scale; see `rule`."""
        raise NotImplementedError

    def taken(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """What `learned` must become to learn on from scales (num_scales, 1) for these lines, as nearly as it can."""
        raise NotImplementedError

    def _centred(self, lines: Tensor) -> Tensor:
        return lines - lines.mean(1, keepdim=True) if self.settings.centered else lines

    def _searches(self, importance: Tensor | None) -> bool:
        """Whether a scale starts at the least error; a weighted one's is not known before the inputs are."""
        wanted = self.settings.initialization
        return wanted == "least_squares" or (wanted == "weighted" and importance is not None)

    def _least_squares(self, lines: Tensor, base: Tensor, groups: int, importance: Tensor | None) -> Tensor:
        from abridged.methods.quantization.fake import least_squares_scale

        return least_squares_scale(lines, base, self.grid, groups, importance)


class Dynamic(Quantizer):
    """Module-wise dynamic scaling (QuantGPT, arXiv 2203.10705, section 3.3): clip α = γ·mean|w|, γ learned.

    `gamma` has one entry for each matrix fused in the weight, whatever the granularity, or one for each scale if the
    settings say so; it starts at 1 or where the squared error is least.
    """

    name = "dynamic"
    description = "scale γ·mean|w|, γ learned (QuantGPT)"
    learned, gamma_by_scale, clips_at = True, True, WIDTHS[1:]

    def __init__(self, settings: WeightSettings, lines: Tensor, fused: int) -> None:
        super().__init__(settings, lines, fused)
        self.blocks = len(lines) if settings.gamma == "scale" else fused

    def parameters(self, lines: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        if not self._searches(importance):
            return {"gamma": lines.new_ones(self.blocks)}
        lines = self._centred(lines)
        return {"gamma": self._least_squares(lines, self._base(lines), self.blocks, importance).flatten()}

    def taken(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor) -> dict[str, Tensor]:
        base = self._base(self._centred(lines))
        return {"gamma": (scale / base.clamp_min(1e-10)).view(self.blocks, -1).mean(1)}

    def _base(self, lines: Tensor) -> Tensor:
        return lines.abs().mean(1, keepdim=True) / self.clip

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        base, gamma = self._base(lines), learned["gamma"]
        if self.settings.gamma == "scale":
            return base * at(gamma.unsqueeze(1), index), None
        if self.blocks == 1:
            return base * gamma, None
        return (base.view(self.blocks, -1) * gamma.unsqueeze(1)).view(-1, 1), None


class LearnedScale(Quantizer):
    """A trained parameter `scale` for each line: the scale times `unit`.

    It starts at 2·mean|w|/√Q, with Q the steps on one side of zero, and at mean|w| on the binary grid; its gradient is
    divided by √(elements·Q) (LSQ).
    """

    learned = True
    clips_at: ClassVar[tuple[int, ...]] = WIDTHS[1:]
    learns_clip: ClassVar[bool] = True  #: whether the parameter is the clip α, and not the scale itself
    damped: ClassVar[bool] = True  #: whether its gradient is divided

    def __init__(self, settings: WeightSettings, lines: Tensor, fused: int) -> None:
        super().__init__(settings, lines, fused)
        self.steps = 1.5 if settings.grid == "balanced" else float(self.grid.top)
        clip = self.ternary_clip if settings.grid == "ternary" else self.clip
        self.unit = clip if self.learns_clip else 1.0
        self.gradient_scale = 1.0 / math.sqrt(lines.shape[1] * self.steps) if self.damped else 1.0

    def parameters(self, lines: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        lines = self._centred(lines)
        mean = lines.abs().mean(1, keepdim=True)
        if self._searches(importance):
            scale = mean * self._least_squares(lines, mean, len(lines), importance)
        else:
            scale = mean if self.settings.grid == "binary" else self.start(lines, mean)
        return {"scale": (scale.clamp_min(1e-10) * self.unit).flatten()}

    def start(self, lines: Tensor, mean: Tensor) -> Tensor:
        """The scale (num_scales, 1) at which lines with these mean|w| start above 1 bit."""
        apart = 2.0 if self.settings.grid == "balanced" else 1.0  # scales in a step
        return 2.0 * mean / math.sqrt(self.steps) / apart

    def taken(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"scale": (scale * self.unit).flatten()}

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        from abridged.methods.quantization.fake import ScaleGradient

        scale = at(learned["scale"].unsqueeze(1), index)
        return ScaleGradient.apply(scale, self.gradient_scale) / self.unit, None


class Lsq(LearnedScale):
    """Learned step size (LSQ, arXiv 1902.08153): the parameter is the scale itself.

    Without symmetry the zero point is learned too (LSQ+, arXiv 2004.09576). There the parameters are relative, so that
    one rate fits all weights: the scale's logarithm, and the zero point's share of the grid. They start with the ends
    at the smallest and largest weight, or at clips searched for the least error.
    """

    name = "lsq"
    description = "learned step"
    levels = (*Quantizer.levels, "q2_0")
    learns_clip, affine = False, True

    def parameters(self, lines: Tensor, importance: Tensor | None = None) -> dict[str, Tensor]:
        if self.grid.kind != "affine":
            return super().parameters(lines, importance)
        from abridged.methods.quantization.fake import affine_range, least_squares_range

        if self._searches(importance):
            scale, zero = least_squares_range(lines, self.grid, importance)
        else:
            scale, zero = affine_range(lines, self.grid)
        return {"log_scale": scale.log().flatten(), "zero": zero.flatten() / self.grid.top}

    def taken(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor) -> dict[str, Tensor]:
        if self.grid.kind != "affine":
            return super().taken(learned, lines, scale)
        return {"log_scale": scale.log().flatten()}

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.grid.kind != "affine":
            return super().rule(learned, lines, index)
        return at(learned["log_scale"].unsqueeze(1), index).exp(), None

    def zero(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
        from abridged.methods.quantization.fake import ZeroPoint

        return ZeroPoint.apply(at(learned["zero"].unsqueeze(1), index), self.grid.top, *self.grid.zeros)


class Pact(LearnedScale):
    """Learned clip (PACT, arXiv 1805.06085): the parameter is the clip α, moved by what is beyond it, undamped."""

    name = "pact"
    description = "learned clip"
    full_scale_gradient, damped = False, False


class Laq(Quantizer):
    """LAQ's (arXiv 1802.08635) alternation with the identity for curvature: α = Σb·w / Σb², b = round(w/α)."""

    name = "laq"
    description = "alternating least squares"

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        from abridged.methods.quantization.fake import round_to_levels_

        scale = lines.abs().mean(1, keepdim=True)
        if self.settings.bits == 1:  # in closed form
            return scale, None
        odd = self.grid.kind == "odd"
        scale = scale * LAQ_START[self.grid.code_book]
        for _ in range(LAQ_ALTERNATIONS):
            scale = scale.clamp_min(1e-10)
            levels = round_to_levels_(lines / scale, self.grid.top, odd)
            scale = (levels * lines).sum(1, keepdim=True) / levels.square().sum(1, keepdim=True).clamp_min(1.0)
        return scale, None


class Twn(Quantizer):
    """TWN (arXiv 1605.04711): threshold 0.7·mean|w|, α the mean of |w| above it."""

    name = "twn"
    description = "ternary by threshold"
    bits, levels = (2,), ("ternary",)

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        threshold = 0.7 * lines.abs().mean(1, keepdim=True)
        above = (lines.abs() > threshold).to(lines.dtype)
        scale = (lines.abs() * above).sum(1, keepdim=True) / above.sum(1, keepdim=True).clamp_min(1.0)
        return scale, (2.0 * threshold).clamp_min(1e-10)


class MinMax(Quantizer):
    """Round to nearest (RTN) between the smallest and the largest weight: α = max|w|, or both ends without symmetry."""

    name = "minmax"
    description = "round to nearest"
    bits = WIDTHS[1:]
    levels = Lsq.levels
    affine = True

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.grid.kind != "affine":
            return lines.abs().amax(1, keepdim=True) / self.clip, None
        from abridged.methods.quantization.fake import affine_range

        return affine_range(lines, self.grid)[0], None

    def zero(self, learned: Mapping[str, Tensor], lines: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
        return (-lines.amin(1, keepdim=True) / scale).round().clamp_(*self.grid.zeros)


class ParetoQ(LearnedScale):
    """ParetoQ (arXiv 2502.02631): LSQ with other grids and clips; the parameter is the clip α, from max|w|."""

    name = "paretoq"
    description = "learned scale on ParetoQ's grids"
    levels = ("balanced", "ternary")
    centred_at, clips_at = (), WIDTHS
    stretch, ternary_clip = 0.99, 1.5  # levels 0, ±2α/3

    def start(self, lines: Tensor, mean: Tensor) -> Tensor:
        return lines.abs().amax(1, keepdim=True) / self.unit


class Binary(Quantizer):
    """Sign and mean, BinaryConnect's closed form: mean|w−μ|·sign(w−μ)."""

    name = "binary"
    description = "mean|w−μ|·sign(w−μ)"
    bits = (1,)

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return lines.abs().mean(1, keepdim=True), None


class Tbt(Quantizer):
    """TBT (arXiv 2306.01841): statistics around the mean, α = 4/3·mean|w−μ|, at 1 bit mean|w−μ|."""

    name = "tbt"
    description = "statistics around the mean (TBT)"
    bits, levels = (1, 2), ("ternary",)
    centred_at = (1, 2)

    def rule(self, learned: Mapping[str, Tensor], lines: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mean = lines.abs().mean(1, keepdim=True)
        return mean if self.settings.bits == 1 else mean * (4.0 / 3.0), None


def at(values: Tensor, index: Tensor | None) -> Tensor:
    """The rows of values (num_scales, 1) at `index` (lines,), or all."""
    if index is None:
        return values
    from torch.nn.functional import embedding

    return embedding(index, values)

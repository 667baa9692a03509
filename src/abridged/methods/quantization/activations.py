"""The activation quantiser of training: a learned clip, calibrated on data before it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abridged.methods.quantization.settings import ActivationSettings
from abridged.runtime.activations import SMALLEST_SCALE, StaticActivation, level_range, nearest_level, quantize_static

SAMPLES_PER_CALL = 2**16
SAMPLES = 2**20


def affine(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and integer zero point (float, None where symmetric) of the range [low, high]; each of shape (1,)."""
    smallest, largest = level_range(bits, symmetric)
    scale = ((high - low) / (largest - smallest)).clamp_min(SMALLEST_SCALE)
    return scale, None if symmetric else (-low / scale).round().clamp(smallest, largest)


class ClipQuantize(torch.autograd.Function):
    """Quantises x to the range [low, high] in `bits` bits.

    Beyond the clip the output is the clip, so its gradient is the sum of ∂L/∂x̂ there (PACT, arXiv 1805.06085);
    inside, the step's share level - x/s counts too where `full` (LSQ, arXiv 1902.08153), with the zero point held.
    """

    @staticmethod
    def forward(ctx, x, low, high, bits, symmetric, full):
        ctx.save_for_backward(x, low, high)
        ctx.settings = bits, symmetric, full
        scale, zero_point = affine(low, high, bits, symmetric)
        return quantize_static(x, scale, zero_point, *level_range(bits, symmetric))

    @staticmethod
    def backward(ctx, grad):
        x, low, high = ctx.saved_tensors
        bits, symmetric, full = ctx.settings
        smallest, largest = level_range(bits, symmetric)
        scale, zero_point = affine(low, high, bits, symmetric)
        levels = x.to(scale.dtype) / scale
        if zero_point is not None:
            levels += zero_point
        grad = grad.to(scale.dtype)
        inside = torch.ops.aten.hardtanh_backward(grad, levels, smallest, largest)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return inside.to(x.dtype), None, None, None, None, None
        share = torch.zeros_like(scale)
        if full:
            rounded = nearest_level(levels.clone(), smallest, largest)
            share = rounded.sub_(levels).mul_(inside).sum() / (largest - smallest)
        # beyond the clip, levels clamped are `largest` above and `smallest` below: two sums tell the sides apart
        outside = grad - inside
        total = outside.sum()
        weighted = outside.mul_(levels.clamp_(smallest, largest)).sum()
        above = (weighted - smallest * total) / (largest - smallest)
        below = total - above
        return inside.to(x.dtype), (below - share).reshape(1), (above + share).reshape(1), None, None, None


class LearnedActivation(nn.Module):
    """Quantises an input of a matrix product to a learned clip.

    The clip is a fixed base times a learned factor (1,): a calibrated base learns at a rate relative to the clip's
    size; QuantGPT's constant start has base 1. Symmetric inputs have one factor, asymmetric ones a factor for each
    end and an integer zero point. While `observing`, values pass unchanged and are sampled for calibration.
    """

    low_base: Tensor
    high_base: Tensor

    def __init__(self, settings: ActivationSettings, symmetric: bool) -> None:
        super().__init__()
        assert settings.bits is not None
        self.settings, self.bits, self.symmetric = settings, settings.bits, symmetric
        constant = settings.initial == "constant"
        start = settings.constant if constant else 1.0
        self.register_buffer("low_base", -torch.ones(1))
        self.register_buffer("high_base", torch.ones(1))
        self.high_factor = nn.Parameter(torch.full((1,), start))
        self.low_factor = None if symmetric else nn.Parameter(torch.full((1,), start))
        self.observing = False
        self._samples: list[Tensor] = []

    def range(self) -> tuple[Tensor, Tensor]:
        """The clip's ends (low, high), each (1,)."""
        high = self.high_base * self.high_factor
        return (-high if self.low_factor is None else self.low_base * self.low_factor), high

    def forward(self, x: Tensor) -> Tensor:
        """Quantise x of any shape; the result has its shape and type."""
        if self.observing:
            self.observe(x)
            return x
        low, high = self.range()
        return ClipQuantize.apply(x, low, high, self.bits, self.symmetric, self.settings.clip_gradient == "full")

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Keep an even sample of x for calibration."""
        if sum(len(kept) for kept in self._samples) < SAMPLES:
            flat = x.detach().flatten()
            sample = flat[:: -(-flat.numel() // SAMPLES_PER_CALL)]
            self._samples.append(sample.to(torch.float32, copy=True))  # a view would keep all of x

    @torch.no_grad()
    def calibrate(self) -> None:
        """Set the base from the values observed; without any, the constant is the start."""
        self.observing = False
        samples, self._samples = self._samples, []
        if self.settings.initial == "constant":
            return
        values = torch.cat(samples) if samples else torch.full((1,), self.settings.constant)
        low, high = calibrated_range(values, self.settings, self.symmetric)
        self.low_base.fill_(low)
        self.high_base.fill_(high)

    @torch.no_grad()
    def static(self) -> StaticActivation:
        """The same quantiser with its clip fixed."""
        scale, zero_point = affine(*self.range(), self.bits, self.symmetric)
        module = StaticActivation(self.bits, self.symmetric).to(scale.device)
        module.scale.copy_(scale)
        if zero_point is not None:
            module.zero_point.copy_(zero_point)
        return module

    def describe(self) -> dict[str, Any]:
        """As `static` does."""
        return {"kind": "static", "bits": self.bits, "symmetric": self.symmetric}

    def extra_repr(self) -> str:
        return f"bits={self.bits}, symmetric={self.symmetric}"


def calibrated_range(values: Tensor, settings: ActivationSettings, symmetric: bool) -> tuple[float, float]:
    """The clip (low, high) for sampled values (n,): by percentile or least squared error."""
    assert settings.bits is not None
    if symmetric:
        values = values.abs()
    ordered = values.sort().values
    if settings.calibration == "percentile":
        share = settings.percentile / 100.0
        high = float(ordered[round(share * (len(ordered) - 1))])
        low = -high if symmetric else min(float(ordered[round((1.0 - share) * (len(ordered) - 1))]), 0.0)
        high = max(high, low + 1e-6, 1e-6)
        return (-high, high) if symmetric else (low, high)

    def error(low: float, high: float) -> float:
        scale, zero_point = affine(torch.tensor([low]), torch.tensor([high]), settings.bits or 8, symmetric)
        levels = level_range(settings.bits or 8, symmetric)
        return float((quantize_static(values.cpu(), scale, zero_point, *levels) - values.cpu()).square().sum())

    top, bottom = max(float(ordered[-1]), 1e-6), min(float(ordered[0]), 0.0)
    shares = [0.02 * 1.04**i for i in range(101) if 0.02 * 1.04**i < 1.0] + [1.0]
    if symmetric:
        high = min((top * share for share in shares), key=lambda candidate: error(-candidate, candidate))
        return -high, high
    high = min((top * share for share in shares), key=lambda candidate: error(bottom, candidate))
    low = min((bottom * share for share in shares), key=lambda candidate: error(candidate, high))
    return low, high

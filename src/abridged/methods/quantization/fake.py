"""Fake quantisation: weights become level * scale in the forward pass, with a gradient for weight and scale.

All functions work on lines: a matrix reshaped to (num_scales, elements), one scale a line. The arithmetic is
elementwise in the weights' own type (FP32; autocast leaves it alone) and made of few passes over memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The levels of a code book, and the range of weight/scale that is not clipped."""

    code_book: str
    top: int  # outermost level
    bound: float  # |weight / scale| at which the clip begins
    kind: str = "integer"  # "integer" (every integer up to top), "odd" (odd integers up to top)


def make_grid(kind: str, bits: int, stretched: bool = False) -> Grid:
    """The grid of a setting: kind binary, ternary, balanced or integer; stretched gives ParetoQ's clip ranges.

    The clip α is the outermost level times the scale, but 4/3 of it on the balanced grid (levels ±α/4, ±3α/4) and
    3/2 of it on ParetoQ's ternary (levels 0, ±2α/3; arXiv 2502.02631).
    """
    if kind == "binary":
        return Grid("binary", 1, 1.0, "odd")
    if kind == "balanced":
        return Grid("quaternary", 3, 4.0 * (0.99 if stretched else 1.0), "odd")
    if kind == "ternary":
        return Grid("ternary", 1, 1.5 * 0.99 if stretched else 1.0)
    top = 2 ** (bits - 1) - 1
    return Grid(f"int{bits}", top, float(top))


def round_to_levels_(x: Tensor, top: int, odd: bool) -> Tensor:
    """Round x = weight/scale in place to the nearest level of the grid; at 0 the odd grid goes up."""
    if odd:  # ParetoQ's α(⌊2c - 0.5⌉ + 0.5)/2, and the sign function where top is 1
        return x.mul_(0.5).floor_().mul_(2.0).add_(1.0).clamp_(-top, top)
    return x.round_().clamp_(-top, top)


class FakeQuantize(torch.autograd.Function):
    """(weight - center) to level * scale.

    Gradient of the weight: passed on, inside the clip only where `clipped`. Gradient of the scale s: the sum over
    its line of ∂L/∂w_q times level - w/s inside the clip (0 unless `full`) and times level beyond it. With
    s = α/n and α = γ·mean|w| this is METHODS' formula for γ; LSQ's (arXiv 1902.08153) and PACT's (1805.06085).
    On the binary grid the output is linear in s and its gradient is exactly the sum of ∂L/∂w_q times the sign.

    Only the inputs are kept for backward.
    """

    @staticmethod
    def forward(ctx, weight, scale, step, center, top, odd, bound, clipped, full):
        ctx.save_for_backward(weight, scale, step, center)
        ctx.settings = top, odd, bound, clipped, full
        x = _units(weight, scale if step is None else step, center)
        return round_to_levels_(x, top, odd).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        weight, scale, step, center = ctx.saved_tensors
        top, odd, bound, clipped, full = ctx.settings
        learned = ctx.needs_input_grad[1]
        if not learned and not clipped:
            return (grad,) + (None,) * 8
        x = _units(weight, scale if step is None else step, center)
        inside = torch.ops.aten.hardtanh_backward(grad, x, -bound, bound)  # 0 where |x| >= bound
        grad_scale = None
        if learned and top == 1 and odd:
            grad_scale = round_to_levels_(x, top, odd).mul_(grad).sum(1, keepdim=True)
        elif learned:
            taken = (inside * x).sum(1, keepdim=True) if full else 0.0
            beyond = grad if full else grad - inside
            grad_scale = round_to_levels_(x, top, odd).mul_(beyond).sum(1, keepdim=True) - taken
        return (inside if clipped else grad, grad_scale) + (None,) * 7


def _units(weight: Tensor, step: Tensor, center: Tensor | None) -> Tensor:
    """The weights in units of the step, as a new tensor."""
    return weight / step if center is None else (weight - center).div_(step)


class StoredScale(torch.autograd.Function):
    """A scale as it will be stored: positive and rounded to its type; the gradient is passed straight through."""

    @staticmethod
    def forward(ctx, scale, half):
        if half:  # 2**-24 is the smallest positive FP16
            return scale.clamp(2.0**-24, 65504.0).to(torch.float16).to(scale.dtype)
        return scale.clamp_min(1e-10)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class ScaleGradient(torch.autograd.Function):
    """The identity, with the gradient multiplied by a factor (LSQ's gradient scale)."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None

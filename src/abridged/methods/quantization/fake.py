"""Fake quantisation: weights become level * scale in the forward pass, with a gradient for weight and scale.

All functions work on lines: a matrix reshaped to (num_scales, elements), one scale a line. The arithmetic is
elementwise in the weights' own type (FP32; autocast leaves it alone) and made of few passes over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from abridged.methods.quantization.quantizers import Grid


def round_to_levels_(x: Tensor, top: int, odd: bool) -> Tensor:
    """Round x = weight/scale in place to the nearest level of the grid; at 0 the odd grid goes up."""
    if odd:  # ParetoQ's α(⌊2c - 0.5⌉ + 0.5)/2, and the sign function where top is 1
        return x.mul_(0.5).floor_().mul_(2.0).add_(1.0).clamp_(-top, top)
    return x.round_().clamp_(-top, top)


class FakeQuantize(torch.autograd.Function):
    """(weight - center) to level * scale.

    Gradient of the weight: passed on, inside the clip only where `clipped`. Gradient of the scale s: the sum over
    its line of ∂L/∂w_q times level - w/s inside the clip (0 unless `full`) and times level beyond it. With
    s = α/n and α = γ·mean|w| this is QuantGPT's formula for γ (arXiv 2203.10705, section 3.3); LSQ's (arXiv 1902.08153)
    and PACT's (1805.06085). On the binary grid the output is linear in s and its gradient is exactly the sum of
    ∂L/∂w_q times the sign.

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


class FakeQuantizeAffine(torch.autograd.Function):
    """weight to (level - zero) * scale, levels being 0 … top.

    Gradients are LSQ+'s (arXiv 2004.09576, section 3): of the weight inside the clip, or everywhere unless `clipped`;
    of the scale level - w/s - zero inside (0 unless `full`) and level - zero beyond it; of the zero point -s beyond it.
    """

    @staticmethod
    def forward(ctx, weight, scale, zero, top, clipped, full):
        ctx.save_for_backward(weight, scale, zero)
        ctx.settings = top, clipped, full
        return round_affine_(weight / scale, zero, top).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        weight, scale, zero = ctx.saved_tensors
        top, clipped, full = ctx.settings
        if not ctx.needs_input_grad[1] and not clipped:
            return grad, None, None, None, None, None
        x = (weight / scale).add_(zero)
        inside = torch.ops.aten.hardtanh_backward(grad, x, 0, top)
        grad_scale = grad_zero = None
        if ctx.needs_input_grad[1]:
            beyond = grad - inside
            taken = inside * (x.round() - x) if full else 0.0
            grad_scale = (beyond * (x.clamp(0, top) - zero) + taken).sum(1, keepdim=True)
            grad_zero = -scale * beyond.sum(1, keepdim=True)
        return inside if clipped else grad, grad_scale, grad_zero, None, None, None


class ZeroPoint(torch.autograd.Function):
    """A zero point's share of the grid (lines, 1) to the level that it is, of some; gradients pass the rounding."""

    @staticmethod
    def forward(ctx, share, top, least, largest):
        ctx.top = top
        return (share * top).round_().clamp_(least, largest)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.top, None, None, None


def round_affine_(x: Tensor, zero: Tensor, top: int) -> Tensor:
    """Levels 0 … top of x = weight/scale, in place."""
    return x.add_(zero).round_().clamp_(0, top)


def affine_range(lines: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point (lines, 1) of levels that reach from the smallest weight to the largest, and 0.

    Where the grid has no such zero point, they are as long and reach beyond one end.
    """
    return _range(lines.amin(1, keepdim=True).clamp_max(0), lines.amax(1, keepdim=True).clamp_min(0), grid)


def _range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    scale = ((high - low) / grid.top).clamp_min(1e-10)
    return scale, (-low / scale).round_().clamp_(*grid.zeros)


SEARCH_POINTS = (32, 11, 11)
"""Points of each search; each after the first covers one spacing of the last to either side of its best point."""


def squared_error(weight: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """The squared error of each line (lines, elements) quantised at scale (lines, 1), weighted: (lines,)."""
    quantised = round_to_levels_(weight / scale, grid.top, grid.kind == "odd").mul_(scale)
    return _weighted(quantised.sub_(weight).square_(), importance).sum(1)


def _weighted(squares: Tensor, importance: Tensor | None) -> Tensor:
    return squares if importance is None else squares.mul_(importance)


@torch.no_grad()
def least_squares_scale(
    weight: Tensor, base: Tensor, grid: Grid, groups: int, importance: Tensor | None = None
) -> Tensor:
    """The multiple of `base` that minimises the squared error, for each of `groups` equal runs of lines.

    `weight` is (lines, elements), as is `importance`, by which squares are multiplied; `base` (lines, 1); returns
    (groups, 1). A geometric search over every sensible
    multiple (the error has local minima), narrowed twice, then alternations that can only lower it: with the levels
    b fixed, the best multiple is Σ b·base·w / Σ (b·base)².
    """
    lines = weight.shape[0]
    base = base.clamp_min(1e-10)

    def grouped(values: Tensor) -> Tensor:
        return values.view(groups, lines // groups).sum(1)

    def spread(multiple: Tensor) -> Tensor:
        return base * multiple.view(groups, 1).expand(groups, lines // groups).reshape(lines, 1)

    def error(multiple: Tensor) -> Tensor:
        return grouped(squared_error(weight, spread(multiple).clamp_min(1e-10), grid, importance))

    mean, largest = weight.abs().mean(1, keepdim=True), weight.abs().amax(1, keepdim=True)
    low = (mean / base).view(groups, -1).amin(1).clamp_min(1e-3) * (0.3 / grid.top)
    high = (largest / base).view(groups, -1).amax(1) * (1.05 / (1.0 if grid.top == 1 else grid.top - 1.0))
    log_low, log_high = low.log(), torch.maximum(high, low * 1.01).log()
    best = best_error = low
    for points in SEARCH_POINTS:
        spacing = (log_high - log_low) / (points - 1)
        candidates = [torch.exp(log_low + spacing * i) for i in range(points)]
        errors = torch.stack([error(candidate) for candidate in candidates])
        best_error, at = errors.min(0)
        best = torch.stack(candidates).gather(0, at.unsqueeze(0))[0]
        log_low, log_high = best.log() - spacing, best.log() + spacing
    for _ in range(5):
        levels = round_to_levels_(weight / spread(best).clamp_min(1e-10), grid.top, grid.kind == "odd")
        levels = levels * base
        numerator = grouped(_weighted(levels * weight, importance).sum(1))
        denominator = grouped(_weighted(levels.square(), importance).sum(1))
        step = torch.where(denominator > 0, numerator / denominator.clamp_min(1e-30), best)
        step_error = error(step)
        better = (step_error < best_error) & (step > 0)
        best, best_error = torch.where(better, step, best), torch.where(better, step_error, best_error)
    return best.unsqueeze(1)


#: Weights that are searched together.
_AT_A_TIME = 1 << 17
SHRINKS = 0.05 * torch.arange(20, 5, -1)
"""Shares of a line's range that are tried as clips."""


@torch.no_grad()
def least_squares_range(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point (lines, 1) of an affine grid at the least squared error, weighted by `importance`.

    Both are (lines, elements). The clips are shares of the smallest and largest weight (and 0, which both reach): first
    the same of both, then each end alone between the shares beside it, then the scale in closed form.
    """
    step = max(1, _AT_A_TIME // weight.shape[1])
    if len(weight) > step:  # a line knows nothing of others, and what fits in the processor's cache is searched fast
        counts = [None] * -(-len(weight) // step) if importance is None else importance.split(step)
        found = [least_squares_range(part, grid, count) for part, count in zip(weight.split(step), counts, strict=True)]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])
    low, high = weight.amin(1, keepdim=True).clamp_max(0), weight.amax(1, keepdim=True).clamp_min(0)
    top = grid.top

    def error(scale: Tensor, zero: Tensor) -> Tensor:
        quantised = round_affine_(weight / scale, zero, top).sub_(zero).mul_(scale)
        return _weighted(quantised.sub_(weight).square_(), importance).sum(1, keepdim=True)

    shares = torch.ones_like(low), torch.ones_like(high)
    best = _range(low, high, grid)
    least = error(*best)

    def attempt(first: Tensor, second: Tensor) -> None:
        nonlocal shares, best, least
        found = _range(low * first, high * second, grid)
        made = error(*found)
        better = made < least
        least = torch.where(better, made, least)
        shares = torch.where(better, first, shares[0]), torch.where(better, second, shares[1])
        best = torch.where(better, found[0], best[0]), torch.where(better, found[1], best[1])

    for share in SHRINKS[1:].tolist():
        attempt(torch.full_like(low, share), torch.full_like(high, share))
    for change in (0.2, -0.2, 0.1, -0.1, 0.05, -0.05, 0.025, -0.025):
        attempt((shares[0] + change).clamp(0.05, 1.2), shares[1])
        attempt(shares[0], (shares[1] + change).clamp(0.05, 1.2))
    for _ in range(2):
        scale, zero = best
        levels = round_affine_(weight / scale, zero, top).sub_(zero)
        own, against = (_weighted(levels * other, importance).sum(1, keepdim=True) for other in (levels, weight))
        moved = torch.where((own > 0) & (against > 0), against / own.clamp_min(1e-30), scale)
        made = error(moved, zero)
        better = made < least
        least, best = torch.where(better, made, least), (torch.where(better, moved, scale), zero)
    return best

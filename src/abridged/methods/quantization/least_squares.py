"""The scale at which quantisation loses least in squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.methods.quantization.fake import Grid, round_to_levels_

SEARCH_POINTS = (32, 11, 11)
"""Points of each search; each after the first covers one spacing of the last to either side of its best point."""


def squared_error(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The squared error of each line (lines, elements) quantised at scale (lines, 1): (lines,)."""
    quantised = round_to_levels_(weight / scale, grid.top, grid.kind == "odd").mul_(scale)
    return quantised.sub_(weight).square_().sum(1)


@torch.no_grad()
def least_squares_scale(weight: Tensor, base: Tensor, grid: Grid, groups: int) -> Tensor:
    """The multiple of `base` that minimises the squared error, for each of `groups` equal runs of lines.

    `weight` is (lines, elements), `base` (lines, 1); returns (groups, 1). A geometric search over every sensible
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
        return grouped(squared_error(weight, spread(multiple).clamp_min(1e-10), grid))

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
        numerator, denominator = grouped((levels * weight).sum(1)), grouped(levels.square().sum(1))
        step = torch.where(denominator > 0, numerator / denominator.clamp_min(1e-30), best)
        step_error = error(step)
        better = (step_error < best_error) & (step > 0)
        best, best_error = torch.where(better, step, best), torch.where(better, step_error, best_error)
    return best.unsqueeze(1)

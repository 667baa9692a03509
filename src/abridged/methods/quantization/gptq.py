"""GPTQ, by itself or as a start for training: errors of rounding make up for each other on real inputs.

As in GPTQ (Frantar et al., arXiv:2210.17323, section 3) the columns of a matrix are rounded one after another, the
inputs that vary most first, and what rounding one does to the outputs is taken up by those not yet rounded. What the
layers before have done to the inputs is made up for first, as in GPTAQ (Li et al., arXiv:2504.02692). The masters
become the weights as they were when their turn came, so that rounding them to nearest gives GPTQ's result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.methods.lockstep import target
from abridged.methods.quantization.fake import round_affine_, round_to_levels_
from abridged.methods.quantization.modules import QuantizedWeight

#: Columns whose errors are passed on to the rest together, and rows that are gone through at once.
_BLOCK, _ROWS = 128, 4096
#: Where a weight's gradient does not end at the clip, how far in scales a master may go.
_FARTHEST = 4.0


@torch.no_grad()
def gptq(
    source: QuantizedWeight, hessian: Tensor, crossed: Tensor | None = None, squares: Tensor | None = None
) -> None:
    """Change a weight (rows, columns) and its scale in place, for inputs with the Hessian XᵀX (columns, columns).

    `crossed` is ZᵀX of the inputs Z in full precision: with it the outputs come near to those of Z. A scale that starts
    at the least weighted error starts anew, at that of these inputs, or of what else squared errors count (`squares`,
    which spreads to the weight's shape); one that follows from the weights stays what it was before.

    Raises AbridgedError where the inputs are not finite.
    """
    weight = source.weight.data = source.weight.data.clone()  # it may be shared with the layer that it came from
    aim, hessian = target(weight, hessian, crossed, source.name)
    if crossed is not None:
        weight.copy_(aim)
    if crossed is not None or source.settings.initialization == "weighted":
        source.refit(hessian.diagonal() if squares is None else squares)
    quantizer, original = source.quantizer, weight.clone()
    lines = weight.view(source.num_scales, -1)
    fit, grid = quantizer.fit(lines), quantizer.grid
    odd, top = grid.kind == "odd", grid.top
    farthest = 0.999 * grid.bound if source.settings.clips_weight_gradient else _FARTHEST

    def nearest(units: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """A column in scales, brought to where a master may be, and rounded."""
        if zero is None:
            units = units.clamp(-farthest, farthest)
            return units, round_to_levels_(units.clone(), top, odd)
        units = units.clamp(min=0.001 - zero, max=top - 0.001 - zero)
        return units, round_affine_(units.clone(), zero, top).sub_(zero)

    order = torch.argsort(hessian.diagonal(), descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    back = torch.argsort(order)
    for first in range(0, len(weight), _ROWS):  # each row is rounded by itself
        here = slice(first, first + _ROWS)
        left, s = weight[here][:, order], _spread(fit.scale, weight, here)[:, order]
        c, z = (None if one is None else _spread(one, weight, here)[:, order] for one in (fit.center, fit.zero))
        masters = torch.empty_like(left)
        for start in range(0, left.shape[1], _BLOCK):
            stop = min(start + _BLOCK, left.shape[1])
            errors = torch.empty_like(left[:, start:stop])
            for j in range(start, stop):
                middle = 0.0 if c is None else c[:, j]
                units, levels = nearest((left[:, j] - middle) / s[:, j], None if z is None else z[:, j])
                masters[:, j] = units * s[:, j] + middle
                errors[:, j - start] = (left[:, j] - levels.mul_(s[:, j])) / upper[j, j]
                left[:, j + 1 : stop] -= errors[:, j - start, None] * upper[j, j + 1 : stop]
            left[:, stop:] -= errors @ upper[start:stop, stop:]
        weight[here] = masters[:, back]
    lines = weight.view(source.num_scales, -1)
    if fit.center is not None:
        lines.copy_(_balanced(lines - fit.center) + fit.center)
    quantizer.take_scale(lines, fit.scale)
    if grid.code_book == "binary":  # signs do not depend on the scale, so that the best one is in closed form
        quantizer.take_scale(lines, fit.scale * _best_multiple(source, original, hessian.float()))


def _spread(values: Tensor, weight: Tensor, rows: slice) -> Tensor:
    """Values of lines (num_scales, 1) where their weights are, of some rows: (rows, columns)."""
    elements, columns = weight.numel() // len(values), weight.shape[1]
    if elements >= columns:  # lines of whole rows
        return values.repeat_interleave(elements // columns, 0)[rows].expand(-1, columns)
    return values.view(len(weight), -1)[rows].repeat_interleave(elements, 1)


def _balanced(lines: Tensor) -> Tensor:
    """Lines with their signs and a mean of 0, so that the mean which is taken off them is what it was."""
    above, below = lines.clamp_min(0), lines.clamp_max(0)
    up, down = above.sum(1, keepdim=True), -below.sum(1, keepdim=True)
    half = (up + down) / 2
    both = (up > 0) & (down > 0)
    return torch.where(both, above * (half / up.clamp_min(1e-20)) + below * (half / down.clamp_min(1e-20)), lines)


def _best_multiple(source: QuantizedWeight, original: Tensor, hessian: Tensor) -> Tensor:
    """What the scales (num_scales, 1) must be multiplied by for the least error of the outputs; one number a row."""
    rounded = source()
    against, own = ((matrix @ hessian * rounded).sum(1) for matrix in (original, rounded))
    blocks = source.num_scales if source.settings.granularity == "per_tensor" else len(original)
    best = against.view(blocks, -1).sum(1) / own.view(blocks, -1).sum(1).clamp_min(1e-20)
    return best.clamp(0.25, 4.0).repeat_interleave(source.num_scales // blocks).unsqueeze(1)

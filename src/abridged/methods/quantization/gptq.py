"""GPTQ, by itself or as a start for training: errors of rounding make up for each other on real inputs.

As in GPTQ (Frantar et al., arXiv:2210.17323, section 3) the columns of a matrix are rounded one after another, the
inputs that vary most first, and what rounding one does to the outputs is taken up by those not yet rounded. What the
layers before have done to the inputs is made up for first, as in GPTAQ (Li et al., arXiv:2504.02692). The masters
become the weights as they were when their turn came, so that rounding them to nearest gives GPTQ's result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.methods.lockstep import DAMPING, check_finite
from abridged.methods.quantization.fake import round_affine_, round_to_levels_
from abridged.methods.quantization.modules import Fit, QuantizedWeight

#: Columns whose errors are passed on to the rest together, and rows that are gone through at once.
_BLOCK, _ROWS = 128, 4096
#: Where a weight's gradient does not end at the clip, how far in scales a master may go.
_FARTHEST = 4.0


class Inputs:
    """What GPTQ needs to know of a layer's inputs X, whatever reads them.

    Attributes:
        order: of columns (columns,), those whose inputs vary most first.
        upper: the upper triangular U (columns, columns) FP32 with (XᵀX)⁻¹ = UᵀU, columns in that order.
        hessian: XᵀX, damped.
        makes_up: whether Z was given.
    """

    def __init__(self, hessian: Tensor, crossed: Tensor | None = None, name: str = "the layer") -> None:
        """hessian: XᵀX. crossed: ZᵀX of the inputs Z in full precision: with it outputs come near to those of Z. Both
        (columns, columns) FP32, and used up; `name` is for messages.

        Raises AbridgedError where they are not finite.
        """
        check_finite(name, hessian, crossed)
        self._drift = None if crossed is None else crossed.sub_(hessian)  # (Z - X)ᵀX, of which damping is no part
        self._drift_inverse: Tensor | None = None
        self.makes_up = crossed is not None
        hessian.diagonal().add_(DAMPING * hessian.diagonal().mean().clamp_min(1e-10))
        self.hessian, self.order = hessian, torch.argsort(hessian.diagonal(), descending=True)
        self.upper = _inverse_factor(hessian, self.order)

    def made_up(self, weight: Tensor) -> Tensor:
        """A copy of a weight (rows, columns) that makes up for what X has lost: WZᵀX(XᵀX)⁻¹ = W + W(Z - X)ᵀX(XᵀX)⁻¹."""
        drift = self._drift
        if drift is not None and len(weight) >= weight.shape[1]:  # less to compute, and for more than one weight
            self._drift, self._drift_inverse = None, self._times_inverse(drift)
        if self._drift_inverse is not None:
            return (weight @ self._drift_inverse).add_(weight)
        return weight.clone() if self._drift is None else self._times_inverse(weight @ self._drift).add_(weight)

    def _times_inverse(self, given: Tensor) -> Tensor:
        """What is given (rows, columns) times (XᵀX)⁻¹, in place: by Uᵀ, then by U, leaving out most of the zeros."""
        left, upper, count = given.t()[self.order], self.upper, len(self.order)
        step = max(_BLOCK, -(-count // 8))
        for start in range(0, count, step):
            part = slice(start, start + step)
            left[part] = upper[part, start:] @ left[start:]
        for start in reversed(range(0, count, step)):
            part = slice(start, start + step)
            left[part] = upper[: start + step, part].t() @ left[: start + step]
        given[:, self.order] = left.t()
        return given


@torch.no_grad()
def gptq(source: QuantizedWeight, inputs: Inputs, squares: Tensor | None = None) -> None:
    """Change a weight (rows, columns) and its scale in place.

    A scale that starts at the least weighted error starts anew, at that of these inputs, or of what else squared errors
    count (`squares`, which spreads to the weight's shape); one that follows from the weights stays what it was before.
    """
    source.weight.data = weight = inputs.made_up(source.weight.detach())  # the layer that it came from keeps its own
    if inputs.makes_up or source.settings.initialization == "weighted":
        source.refit(inputs.hessian.diagonal() if squares is None else squares)
    quantizer, lines = source.quantizer, weight.view(source.num_scales, -1)
    fit, binary = quantizer.fit(lines), quantizer.grid.code_book == "binary"
    original = weight.clone() if binary else None
    for first in range(0, len(weight), _ROWS):  # each is rounded by itself, and copies are of some
        _round_rows_(source, fit, weight, slice(first, min(first + _ROWS, len(weight))), inputs)
    if fit.center is not None:
        lines.copy_(_balanced(lines - fit.center) + fit.center)
    quantizer.take_scale(lines, fit.scale)
    if original is not None:  # signs do not depend on the scale, so that the best one is in closed form
        quantizer.take_scale(lines, fit.scale * _best_multiple(source, original, inputs.hessian))


def _inverse_factor(hessian: Tensor, order: Tensor) -> Tensor:
    """The upper triangular U (columns, columns) FP32 with H⁻¹ = UᵀU, columns in that order.

    In one copy of H in FP64: of H with its columns reversed the lower factor, inverted and reversed, is U.
    """
    back = order.flip(0)
    lower = hessian[back[:, None], back].double()  # symmetric: as good as its transpose, in which LAPACK works in place
    info = torch.empty((), dtype=torch.int32, device=lower.device)
    torch.linalg.cholesky_ex(lower.mT, check_errors=True, out=(lower.mT, info))
    lower = lower.mT.float()
    _invert_lower_(lower)
    return lower.flip(0, 1)


def _invert_lower_(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: nearly all of it matrix products."""
    size = len(lower)
    if size <= _BLOCK:
        lower.copy_(torch.linalg.solve_triangular(lower, torch.eye(size, out=torch.empty_like(lower)), upper=False))
        return
    half = size // 2
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower_(first)
    _invert_lower_(second)
    below.copy_((second @ below) @ first).neg_()


def _round_rows_(source: QuantizedWeight, fit: Fit, weight: Tensor, rows: slice, inputs: Inputs) -> None:
    """Turn some rows of a weight (rows, columns) into masters, column after column."""
    grid, settings, order, upper = source.quantizer.grid, source.settings, inputs.order, inputs.upper
    odd, top = grid.kind == "odd", grid.top
    farthest = 0.999 * grid.bound if settings.clips_weight_gradient else _FARTHEST
    columns, elements = len(order), weight.numel() // source.num_scales  # under a scale
    begins = torch.arange(rows.start, rows.stop, device=weight.device) * columns
    left = weight[rows].t()[order]  # what is still to be rounded, and the masters of what is

    def spread(values: Tensor | None, part: slice) -> Tensor | None:  # (num_scales, 1) to (columns of that part, rows)
        return None if values is None else values.flatten()[(begins + order[part, None]) // elements]

    def nearest(units: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """A column in scales, brought to where a master may be, and rounded."""
        if zero is None:
            units = units.clamp_(-farthest, farthest)
            return units, round_to_levels_(units.clone(), top, odd)
        units = units.clamp_(min=0.001 - zero, max=top - 0.001 - zero)
        return units, round_affine_(units.clone(), zero, top).sub_(zero)

    for start in range(0, columns, _BLOCK):
        part = slice(start, start + _BLOCK)
        block, triangle = left[part], upper[part, part]
        scale, zero, center = (spread(values, part) for values in (fit.scale, fit.zero, fit.center))
        assert scale is not None
        errors = torch.empty_like(block)
        for j, column in enumerate(block):
            centered = column if center is None else column - center[j]
            units, levels = nearest(centered / scale[j], None if zero is None else zero[j])
            torch.div(column - levels.mul_(scale[j]), triangle[j, j], out=errors[j])
            block[j + 1 :].addr_(triangle[j, j + 1 :], errors[j], alpha=-1)
            torch.mul(units, scale[j], out=column)
            if center is not None:
                column.add_(center[j])
        left[part.stop :].addmm_(upper[part, part.stop :].t(), errors, alpha=-1)
    weight[rows, order] = left.t()


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

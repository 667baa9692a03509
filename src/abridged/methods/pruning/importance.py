"""How much a unit matters, where no mask was learned: the baselines that learned masks are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.methods.pruning.budget import Target
from abridged.methods.pruning.masked import Masks

#: Of the difference between axes in what they are worth, how much counts.
_BETWEEN = 0.25


@torch.no_grad()
def magnitudes(model: nn.Module, masks: Masks) -> Tensor:
    """The L2 norm of all weights that go with each unit, (units,); of a gate, of the part's last matrix."""
    squares = torch.zeros(masks.mask.units, device=masks.free.device)
    layout = masks.layout
    for module in layout.modules:
        if module.columns is None:
            continue
        weight = model.get_submodule(module.path).get_parameter("weight").square()
        weight = weight.t() if isinstance(model.get_submodule(module.path), Conv1D) else weight
        for dimension, side in ((1, module.rows), (0, module.columns)):
            if side.axis is not None:
                places = side.places(torch.arange(layout.axes[side.axis].units)).to(weight.device)
                squares[masks.places[side.axis]] += weight.sum(dimension)[places].sum(1)
        if module.gate is not None and layout.outputs[module.gate] == module.path:
            squares[masks.gates[module.gate]] += weight.sum()
    return squares.sqrt()


def normalized(scores: Tensor, masks: Masks) -> Tensor:
    """Scores in units of their root mean square within each axis, and gates within their kind.

    Heads, inner units and hidden units stand for different numbers of weights: only so can one threshold serve all
    (Molchanov et al., arXiv:1611.06440, section 2.2: norms by layer).
    """
    found = scores.clone()
    for index in _groups(masks):
        found[index] = scores[index] / scores[index].square().mean().sqrt().clamp_min(1e-12)
    return found


@torch.no_grad()
def worth(sensitivity: Tensor, masks: Masks, target: Target) -> Tensor:
    """Scores (units,) of what the loss depends on: the logarithm of sensitivity by what a unit takes.

    Between units of an axis it counts in full. Between axes it counts for a quarter: how the loss curves where nothing
    is removed says which of some units to remove, but little of how much training will make up for.
    """
    price, found = prices(masks, target), torch.zeros_like(sensitivity)
    for index in _groups(masks):
        mean = sensitivity[index].mean().clamp_min(1e-30)
        within = (sensitivity[index] / mean).clamp_min(1e-6).log()
        found[index] = within + _BETWEEN * (mean / price[index].mean()).log()
    return found - found.median()


@torch.enable_grad()
def prices(masks: Masks, target: Target) -> Tensor:
    """What the whole model would be smaller by without each unit, (units,), as a share."""
    whole = torch.ones(masks.mask.units, device=masks.free.device, requires_grad=True)
    size = target.left(*masks.counts(whole))
    return torch.autograd.grad(size, whole, allow_unused=True, materialize_grads=True)[0].clamp_min(1e-12)


def _groups(masks: Masks) -> Iterator[Tensor]:
    every = torch.arange(masks.mask.units)
    for place in masks.places.values():
        yield every[place]
    for kind in ("attention", "ffn"):
        gates = [place for name, place in masks.gates.items() if masks.layout.axes[name].kind == kind]
        if gates:
            yield torch.tensor(gates)

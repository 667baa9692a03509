"""The hidden width as combinations of units: principal components of the residual stream in place of single units.

As SliceGPT does (Ashkboos et al., arXiv:2401.15024), but with one basis for the whole model and norms that stay what
they are: a LayerNorm takes nothing away, since all components are orthogonal to the mean, and its weights are refitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.methods.lockstep import TOKENS, as_is, check_finite, in_lockstep
from abridged.methods.pruning.reconstruct import standardized

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate
    from abridged.methods.pruning.layout import Layout


@dataclass(frozen=True)
class HiddenMoments:
    """What the residual stream varies in: second moments (hidden, hidden) over tokens, each norm counting alike."""

    moments: Tensor
    centered: bool  #: whether all norms are LayerNorms, which take away the mean of the units


@torch.no_grad()
def hidden_moments(model: Any, layout: Layout, calibrate: Calibrate, tokens: int = TOKENS) -> HiddenMoments:
    """Of what norms read, as they scale it, and of what they put out. Raises AbridgedError where it is not finite."""
    norms: dict[str, Any] = {m.path: model.get_submodule(m.path) for m in layout.modules if m.part == "norm"}
    centered = all(isinstance(norm, nn.LayerNorm) for norm in norms.values())
    total = torch.zeros(0)

    def take(path: str, moments: Tensor, crossed: Tensor | None) -> None:
        nonlocal total
        check_finite(path, moments)
        moments = moments.double()
        varying = moments[:-1, :-1]
        if centered:  # what does not vary is left to biases
            varying = varying - torch.outer(moments[-1, :-1], moments[-1, :-1]) / moments[-1, -1]
        weight = norms[path].weight.double()
        for found in (varying, varying * torch.outer(weight, weight)):
            total = found / found.trace().clamp_min(1e-30) + (total if total.numel() else 0)

    views = {path: (partial(standardized, norm), as_is) for path, norm in norms.items()}
    title = "principal components"
    in_lockstep(model, None, list(norms), calibrate, take, title, constant=True, views=views, tokens=tokens)
    return HiddenMoments(total, centered)


@torch.no_grad()
def principal_basis(stream: HiddenMoments, units: Tensor) -> Tensor:
    """As many orthonormal combinations of hidden units as there are in `units` (h,), as columns: (hidden, h), FP32.

    They span what varies most, and are turned to lie as near as can be to the single units in `units`, which norms'
    weights belong to.
    """
    total = stream.moments
    single = torch.eye(len(total), dtype=torch.float64)[:, units.cpu()].to(total)
    if stream.centered:  # LayerNorm takes away the mean of the units before, and of the combinations after
        total = _centered(_centered(total).t())
        single = _centered(single.t()).t()
    width = len(units) - int(stream.centered)
    components = torch.linalg.eigh(total)[1][:, len(total) - width :]
    left, _, right = torch.linalg.svd(components.t() @ single, full_matrices=False)
    return (components @ left @ right).float()


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(0)

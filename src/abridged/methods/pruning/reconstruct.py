"""Weights of a cut model that make up for what was cut, where training has not.

Each matrix of the cut model becomes the one whose outputs on real inputs come nearest to those of the whole model:
W' = W·ZᵀX·(XᵀX)⁻¹, with X the inputs that it has now and Z those that it had. Matrices come in the order of the pass,
so that each sees what those before have become (as GPTAQ does for rounding: Li et al., arXiv:2504.02692).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.methods.lockstep import DAMPING, check_finite, in_lockstep

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate
    from abridged.methods.pruning.layout import Kept, Layout, Module, Side


@torch.no_grad()
def reconstruct(model: nn.Module, whole: nn.Module, layout: Layout, kept: Kept, calibrate: Calibrate) -> None:
    """Change the matrices and biases of `model`, which was cut to `kept`, in place; `whole` is the model before.

    Embeddings, and heads that are tied to one, stay as they are. Raises AbridgedError where inputs are not finite.
    """
    modules = {module.path: module for module in layout.modules if is_linear(model, module)}

    def take(path: str, moments: Tensor, crossed: Tensor | None) -> None:
        if crossed is not None:
            refit(model.get_submodule(path), whole.get_submodule(path), modules[path], kept, moments, crossed)

    if modules:
        in_lockstep(model, whole, list(modules), calibrate, take, "making up for the cut", constant=True)


def is_linear(model: nn.Module, module: Module) -> bool:
    """Whether a module of the layout is a matrix that is still there and multiplies inputs."""
    try:
        return isinstance(model.get_submodule(module.path), (nn.Linear, Conv1D)) and not module.tied
    except AttributeError:
        return False


def refit(new: Any, old: Any, module: Module, kept: Kept, moments: Tensor, crossed: Tensor) -> None:
    """Set the weight (r, k) and the bias of `new`, cut from those of `old` (R, n), for inputs with a last column of 1.

    moments (k+1, k+1) are XᵀX, crossed (n+1, k+1) are ZᵀX. Both are damped as if the units kept were as before.
    """
    check_finite(module.path, moments, crossed)
    moments, crossed = moments.double(), crossed.double()
    assert module.columns is not None
    rows, columns = _index(module.rows, kept, moments), _index(module.columns, kept, moments)
    damping = DAMPING * moments.diagonal()[:-1].mean().clamp_min(1e-10)
    inputs = torch.arange(len(columns), device=columns.device)
    moments[inputs, inputs] += damping
    crossed[columns, inputs] += damping
    transposed, weight = isinstance(new, Conv1D), old.weight.double()
    weight = (weight.t() if transposed else weight)[rows]
    if new.bias is None:  # nothing is there to take up what does not vary
        moments, crossed = moments[:-1, :-1], crossed[:-1, :-1]
    else:
        weight = torch.cat([weight, old.bias.double()[rows].unsqueeze(1)], 1)
        moments[-1, -1] += 1e-6 * damping
    found = torch.linalg.solve(moments, (weight @ crossed).t()).t()
    if new.bias is not None:
        new.bias.copy_(found[:, -1])
        found = found[:, :-1]
    new.weight.copy_(found.t() if transposed else found)


def _index(side: Side, kept: Kept, like: Tensor) -> Tensor:
    """The rows or columns of the kept units, or all."""
    index = side.index(kept)
    return (torch.arange(side.total) if index is None else index).to(like.device)

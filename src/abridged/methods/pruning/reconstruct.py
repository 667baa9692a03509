"""Weights of a cut model that make up for what was cut, where training has not.

Each matrix of the cut model becomes the one whose outputs on real inputs come nearest to those of the whole model:
W' = W·ZᵀX·(XᵀX)⁻¹, with X the inputs that it has now and Z those that it had. Matrices come in the order of the pass,
so that each sees what those before have become (as GPTAQ does for rounding: Li et al., arXiv:2504.02692).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.families.layout import HIDDEN
from abridged.methods.lockstep import DAMPING, TOKENS, check_finite, in_lockstep
from abridged.models.streamed import with_values

if TYPE_CHECKING:
    from abridged.families.layout import Kept, Layout, Module, Side
    from abridged.methods.base import Calibrate
    from abridged.methods.lockstep import View


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    whole: nn.Module,
    layout: Layout,
    kept: Kept,
    calibrate: Calibrate,
    basis: Tensor | None = None,
    tokens: int = TOKENS,
) -> None:
    """Change the matrices and biases of `model`, which was cut to `kept`, in place; `whole` is the model before.

    With a basis of the hidden width (see `cut`) the norms, too: their outputs come near to the whole model's in it.
    Embeddings, and heads that are tied to one, stay as they are. Raises AbridgedError where inputs are not finite.
    """
    modules = {module.path: module for module in layout.modules if is_linear(model, module)}
    if not modules:
        return
    views: dict[str, tuple[View, View]] = {}
    if basis is not None:
        for module in layout.modules:
            if module.norm is not None:
                modules[module.path] = module
                views[module.path] = (
                    module.norm.standardize,
                    partial(_put_out, whole.get_submodule(module.path), basis),
                )

    def take(path: str, moments: Tensor, crossed: Tensor | None) -> None:
        new, module = model.get_submodule(path), modules[path]
        if crossed is None:
            return
        check_finite(path, moments, crossed)
        if module.norm is not None:
            refit_norm(new, moments, crossed, module.norm.offset)
        else:
            refit(new, with_values(whole, path), module, kept, moments, crossed, basis)

    title = "making up for the cut"
    in_lockstep(model, whole, list(modules), calibrate, take, title, constant=True, views=views, tokens=tokens)


def is_linear(model: nn.Module, module: Module) -> bool:
    """Whether a module of the layout is a matrix that is still there and multiplies inputs."""
    try:
        return isinstance(model.get_submodule(module.path), (nn.Linear, Conv1D)) and not module.tied
    except AttributeError:
        return False


def refit(
    new: Any, old: Any, module: Module, kept: Kept, moments: Tensor, crossed: Tensor, basis: Tensor | None = None
) -> None:
    """Set the weight (r, k) and the bias of `new`, cut from those of `old` (R, n), for inputs with a last column of 1.

    moments (k+1, k+1) are XᵀX, crossed (n+1, k+1) are ZᵀX. Both are damped as if the units kept were as before.
    """
    moments, crossed = moments.double(), crossed.double()
    assert module.columns is not None
    damping = DAMPING * moments.diagonal()[:-1].mean().clamp_min(1e-10)
    moments[:-1, :-1].diagonal().add_(damping)
    if module.columns.axis == HIDDEN and basis is not None:
        crossed[:-1, :-1] += damping * basis.to(crossed)
    else:
        inputs, index = torch.arange(len(moments) - 1, device=moments.device), module.columns.index(kept)
        crossed[inputs if index is None else index.to(inputs.device), inputs] += damping
    transposed, weight = isinstance(new, Conv1D), old.weight.double()
    weight = _left(weight.t() if transposed else weight, module.rows, kept, basis)
    if new.bias is None:  # nothing is there to take up what does not vary
        moments, crossed = moments[:-1, :-1], crossed[:-1, :-1]
    else:
        weight = torch.cat([weight, _left(old.bias.double().unsqueeze(1), module.rows, kept, basis)], 1)
        moments[-1, -1] += 1e-6 * damping
    found = torch.linalg.solve(moments, (weight @ crossed).t()).t()
    if new.bias is not None:
        new.bias.copy_(found[:, -1])
        found = found[:, :-1]
    new.weight.copy_(found.t() if transposed else found)


def _left(matrix: Tensor, side: Side, kept: Kept, basis: Tensor | None) -> Tensor:
    """The rows of a matrix that are left of a side, or the combinations of them."""
    if side.axis == HIDDEN and basis is not None:
        return basis.to(matrix).t() @ matrix
    index = side.index(kept)
    return matrix if index is None else matrix[index.to(matrix.device)]


def _put_out(norm: nn.Module, basis: Tensor, z: Tensor) -> Tensor:
    """What a norm makes of z (…, d), in a basis (d, h); past the hooks that hold up its model's pass."""
    found: Tensor = type(norm).forward(norm, z)
    return found @ basis.to(found)


def refit_norm(norm: Any, moments: Tensor, crossed: Tensor, offset: float) -> None:
    """Set weight and bias (d,) of a norm, unit by unit, by what it multiplies and is to put out: XᵀX and ZᵀX.

    offset: what it adds to its weight.
    """
    moments, crossed = moments.double(), crossed.double()
    tokens, sums, wanted = moments[-1, -1], moments[-1, :-1], crossed[:-1, -1]
    biased = getattr(norm, "bias", None) is not None
    if not biased:
        sums = torch.zeros_like(sums)
    squares = moments.diagonal()[:-1] - sums * sums / tokens
    weight = (crossed.diagonal()[: len(sums)] - wanted * sums / tokens) / squares.clamp_min(1e-6 * tokens)
    norm.weight.copy_(weight - offset)
    if biased:
        norm.bias.copy_((wanted - weight * sums) / tokens)

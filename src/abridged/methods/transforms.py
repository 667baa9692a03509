"""Transforms of an axis: its units become combinations of what they were, merged into whatever writes or reads them.

An orthogonal transform of the residual stream changes nothing of what a model puts out where norms scale all units
alike and take away no mean (`rotate`; QuaRot: Ashkboos et al., arXiv:2404.00456, section 3). A transform to fewer units
is what pruning calls components: the principal ones, as SliceGPT has them (Ashkboos et al., arXiv:2401.15024), but one
basis for the whole model and norms that stay what they are: a LayerNorm takes nothing away, since all components are
orthogonal to the mean, and its weights are refitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.core.errors import AbridgedError
from abridged.core.modes import evaluating
from abridged.families.layout import HIDDEN, Layout, Module, layout_of
from abridged.methods.lockstep import TOKENS, as_is, check_finite, in_lockstep

if TYPE_CHECKING:
    from abridged.families import View
    from abridged.methods.base import Calibrate

#: How far from orthogonal a rotation may be, and a norm's gradient from that of the matrices that read it.
_CLOSE = 1e-4


@dataclass(frozen=True)
class Transform:
    """New units of an axis: each column of `matrix` (units, new units) is what one is of the old ones."""

    matrix: Tensor
    axis: str = HIDDEN

    def along(self, weight: Tensor, dimension: int) -> Tensor:
        """A weight in the new units, whose `dimension` has the old ones."""
        return torch.tensordot(weight, self.matrix.to(weight), ([dimension], [0])).movedim(-1, dimension)

    def scaling(self, weight: Tensor, offset: float) -> Tensor:
        """A norm's weight (units,), to which it adds `offset`: exact where it is the same for all units."""
        return (weight + offset) @ self.matrix.to(weight).square() - offset

    def merged(self, target: Any, module: Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a module in the new units, as it stores them."""
        weight, bias = target.weight.data, target.bias.data if module.bias else None
        if module.norm is not None:
            weight = self.scaling(weight, module.norm.offset)
        else:
            sides = enumerate((module.rows, module.columns))
            for dimension in (number for number, side in sides if side is not None and side.axis == self.axis):
                weight = self.along(weight, 1 - dimension if isinstance(target, Conv1D) else dimension)
        return weight, bias if bias is None or module.rows.axis != self.axis else bias @ self.matrix.to(bias)


@torch.no_grad()
def rotate(model: Any, view: View, rotation: Tensor, inputs: Mapping[str, Tensor]) -> None:
    """Merge an orthogonal rotation (hidden, hidden) of the residual stream into `model`, which goes on as before.

    1. Every norm's weight and bias move into the matrices that read the norm. 2. What writes to the stream (embeddings,
    outputs of attention and feed-forward parts) is multiplied by the rotation. 3. What reads it, by its transpose.

    inputs: some that the model takes, to see by gradients what reads each norm.
    Raises AbridgedError, before anything changes, where the model would not go on as before: norms that take the mean
    away (unless the rotation leaves it where it is) or that more than matrices read, a nonlinearity on the stream, or a
    head tied to the embedding, which has no place of its own for the last norm's weight.
    """
    layout, transform = layout_of(model, view), Transform(rotation)
    eye = torch.eye(view.hidden_size).to(rotation)
    if rotation.shape != eye.shape or not torch.allclose(rotation.t() @ rotation, eye, atol=_CLOSE):
        raise AbridgedError(f"a rotation of this model is an orthogonal matrix of {view.hidden_size} rows and columns")
    if view.writers:
        raise AbridgedError(f"{view.writers[0]} writes to the hidden width through a nonlinearity, which cannot rotate")
    kept_mean = bool((rotation.sum(1) - 1).abs().max() < _CLOSE)
    for module in layout.modules:
        if module.norm is not None and module.norm.centered and not kept_mean:
            raise AbridgedError(f"{module.path} takes the mean of the units away, which this rotation mixes in")
    fold_norms(model, layout, inputs)
    for module in layout.modules:
        target = model.get_submodule(module.path)
        weight, bias = transform.merged(target, module)
        target.weight.copy_(weight)
        if bias is not None:
            target.bias.copy_(bias)


@torch.no_grad()
def fold_norms(model: Any, layout: Layout, inputs: Mapping[str, Tensor]) -> None:
    """Move what each norm multiplies by and adds into the matrices that read it: it then scales all units by 1.

    Raises AbridgedError, before anything changes, where something else reads it, or a matrix cannot take it in.
    """
    found = readers_of_norms(model, layout, inputs)
    norms = {module.path: module.norm for module in layout.modules if module.norm is not None}
    for path, readers in found.items():
        bias = getattr(model.get_submodule(path), "bias", None)
        for reader in readers:
            if any(reader in (module.path, *module.tied) for module in layout.modules if module.tied):
                raise AbridgedError(f"{reader} is tied to the embedding, so the weight of {path} cannot move into it")
            if bias is not None and model.get_submodule(reader).bias is None and bool(bias.any()):
                raise AbridgedError(f"{reader} has no bias that the one of {path} could move into")
    for path, readers in found.items():
        norm, offset = model.get_submodule(path), norms[path].offset
        scale, bias = norm.weight + offset, getattr(norm, "bias", None)
        for reader in readers:
            matrix = model.get_submodule(reader)
            weight = matrix.weight.t() if isinstance(matrix, Conv1D) else matrix.weight
            if bias is not None and matrix.bias is not None:
                matrix.bias += weight @ bias
            weight *= scale
        norm.weight.fill_(1.0 - offset)
        if bias is not None:
            bias.zero_()


def readers_of_norms(model: Any, layout: Layout, inputs: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The matrices that read what each norm puts out, by the norm's path.

    Raises AbridgedError where something else does: the gradient of what the norm puts out is then more than the sum of
    those of what the matrices take in.
    """
    norms = [module.path for module in layout.modules if module.norm is not None]
    matrices = [path for module in layout.modules if module.norm is None for path in (module.path, *module.tied)]
    put_out: dict[str, Tensor] = {}
    taken_in: dict[str, dict[str, Tensor]] = {path: {} for path in norms}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            put_out[path] = output

        return hook

    def split(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> Any:
            x = arguments[0]
            same = ((y.data_ptr(), y.shape) == (x.data_ptr(), x.shape) for y in put_out.values())  # a view of all, too
            norm = next((name for name, it_is in zip(put_out, same, strict=True) if it_is), None)
            if norm is None:
                return None
            taken_in[norm][path] = x.clone()
            return (taken_in[norm][path], *arguments[1:])

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in norms]
    linear = [path for path in matrices if isinstance(model.get_submodule(path), (nn.Linear, Conv1D))]
    handles += [model.get_submodule(path).register_forward_pre_hook(split(path)) for path in linear]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), evaluating(model):
            found = model(**inputs).to_tuple()
            loss = torch.stack([x.float().square().sum() for x in found if isinstance(x, Tensor)]).sum()
            wanted = [*put_out.values(), *(x for each in taken_in.values() for x in each.values())]
            gradients = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for handle in handles:
            handle.remove()
    whole = {path: next(gradients) for path in put_out}
    by_matrices = {path: [next(gradients) for _ in each] for path, each in taken_in.items()}
    for path in norms:
        rest = whole[path] - sum(by_matrices[path])
        if not by_matrices[path] or float(rest.norm()) > _CLOSE * float(whole[path].norm()):
            raise AbridgedError(f"more than matrices read what {path} puts out, so its weight has nowhere to go")
    return {path: list(each) for path, each in taken_in.items()}


@dataclass(frozen=True)
class HiddenMoments:
    """What the residual stream varies in: second moments (hidden, hidden) over tokens, each norm counting alike."""

    moments: Tensor
    centered: bool  #: whether all norms are LayerNorms, which take away the mean of the units


@torch.no_grad()
def hidden_moments(model: Any, layout: Layout, calibrate: Calibrate, tokens: int = TOKENS) -> HiddenMoments:
    """Of what norms read, as they scale it, and of what they put out. Raises AbridgedError where it is not finite."""
    norms = {module.path: module.norm for module in layout.modules if module.norm is not None}
    centered = all(kind.centered for kind in norms.values())
    total = torch.zeros(0)

    def take(path: str, moments: Tensor, crossed: Tensor | None) -> None:
        nonlocal total
        check_finite(path, moments)
        moments = moments.double()
        varying = moments[:-1, :-1]
        if centered:  # what does not vary is left to biases
            varying = varying - torch.outer(moments[-1, :-1], moments[-1, :-1]) / moments[-1, -1]
        weight = model.get_submodule(path).weight.double() + norms[path].offset
        for found in (varying, varying * torch.outer(weight, weight)):
            total = found / found.trace().clamp_min(1e-30) + (total if total.numel() else 0)

    views = {path: (kind.standardize, as_is) for path, kind in norms.items()}
    title = "principal components"
    in_lockstep(model, None, list(norms), calibrate, take, title, constant=True, views=views, tokens=tokens)
    return HiddenMoments(total, centered)


@torch.no_grad()
def principal_components(stream: HiddenMoments, units: Tensor) -> Transform:
    """To as many orthonormal combinations of hidden units as there are in `units` (h,): (hidden, h), FP32.

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
    return Transform((components @ left @ right).float())


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(0)

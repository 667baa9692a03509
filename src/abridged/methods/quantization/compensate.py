"""Starts weights where their rounding errors make up for each other on real inputs.

After GPTQ (Frantar et al., arXiv:2210.17323, section 3): the columns of a matrix are rounded one after another, the
inputs that vary most first, and what rounding one does to the outputs is taken up by those not yet rounded. What the
layers before have done to the inputs is made up for first, as in GPTAQ (Li et al., arXiv:2504.02692). Here it is a
start for training: the masters become the weights as they were when their turn came.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import AbridgedError
from abridged.methods.quantization.fake import round_to_levels_
from abridged.methods.quantization.modules import QuantizedLinear, QuantizedWeight
from abridged.methods.quantization.settings import LEARNED
from abridged.training.progress import counter

#: Tokens that are read for it, all at once: some times the columns of the matrices that such models have.
TOKENS = 16_384
#: Added to the diagonal of the inputs' second moments, of its mean: few tokens leave directions unseen.
DAMPING = 0.05
#: Columns whose errors are passed on to the rest together.
_BLOCK = 128
#: Where a weight's gradient does not end at the clip, how far in scales a master may go.
_FARTHEST = 4.0


class _Enough(Exception):
    """The last layer has been met: what comes after it in the pass is of no use."""


class Inputs:
    """What comes into the layers of a model in one pass, one after another: the pass waits until each is taken.

    It runs in a thread of its own, so that two models can be followed side by side without keeping what either makes.
    """

    def __init__(self, model: nn.Module, paths: list[str], run: Callable[[nn.Module], None]) -> None:
        self._met: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=1)
        self._next: tuple[str, Any] | None = None
        self._stopped = threading.Event()
        for path in paths:
            model.get_submodule(path).register_forward_pre_hook(self._hook(path))
        self._thread = threading.Thread(target=self._run, args=(model, run), daemon=True)
        self._thread.start()

    def at(self, path: str) -> Tensor | None:
        """The input of the layer at `path`, or None where it is not the next that this pass comes to."""
        self._next = self._next or self._met.get()
        met, x = self._next
        if isinstance(x, Exception):
            raise x
        if met != path:
            return None
        self._next = None
        return x

    def stop(self) -> None:
        """End the pass where it is."""
        self._stopped.set()
        self._thread.join()

    def _hook(self, path: str) -> Callable[..., None]:
        return lambda module, arguments: self._put(path, arguments[0])

    def _put(self, path: str, what: Any) -> None:
        while not self._stopped.is_set():
            try:
                return self._met.put((path, what), timeout=0.05)
            except queue.Full:
                continue
        raise _Enough

    def _run(self, model: nn.Module, run: Callable[[nn.Module], None]) -> None:
        ended: Any = None
        try:
            run(model)
        except Exception as error:  # raised where the other model waits for the next input
            ended = error
        with suppress(_Enough):
            self._put("", ended)


@contextmanager
def compensating(model: nn.Module, paths: list[str], whole: Inputs) -> Iterator[None]:
    """A context for one forward pass, of one batch, which compensates the linear layers at `paths` as it meets them.

    So each sees its inputs as the layers before it, compensated already, leave them; `whole` has those of the model in
    full precision. The pass ends with the last of them. Padding is left out where the model is given masks.
    """
    masks: list[Tensor] = []

    def look(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        given = (named.get(name) for name in ("decoder_attention_mask", "attention_mask"))
        masks[:] = [mask for mask in given if mask is not None]

    def meet(path: str, module: Any, x: Tensor) -> None:
        mask = next((mask for mask in masks if x.dim() > 2 and mask.shape == x.shape[:2]), None)

        def rows(inputs: Tensor) -> Tensor:
            kept = inputs if mask is None else inputs[mask.bool()]
            return kept.detach().float().reshape(-1, inputs.shape[-1])

        with torch.autocast(x.device.type, enabled=False):
            before, after = whole.at(path), rows(module.prepared_inputs(x))
            compensate(module.source, after.t() @ after, None if before is None else rows(before).t() @ after)
        waiting.discard(path)
        show(len(paths) - len(waiting), len(paths))
        if not waiting:
            raise _Enough

    def hook(path: str) -> Callable[..., None]:
        return lambda module, arguments: meet(path, module, arguments[0])

    waiting = set(paths)
    hooks = [model.register_forward_pre_hook(look, with_kwargs=True)]
    for path in paths:
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantizedLinear)
        hooks.append(layer.register_forward_pre_hook(hook(path)))
    try:
        with counter("rounding, compensated") as show, suppress(_Enough):
            yield
    finally:
        whole.stop()
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def compensate(source: QuantizedWeight, moments: Tensor, crossed: Tensor | None = None) -> None:
    """Change a weight (rows, columns) and its scale in place, for inputs with second moments XᵀX (columns, columns).

    `crossed` is ZᵀX of the inputs Z in full precision: with it the outputs come near to those of Z.

    Raises:
        AbridgedError: the inputs are not finite, or the quantiser computes its scale from the weights at every step.
    """
    weight = source.weight.data = source.weight.data.clone()  # it may be shared with the layer that it came from
    if source.settings.quantizer not in LEARNED:
        raise AbridgedError(f"compensate needs a learned scale, and {source.settings.quantizer} has none")
    if not bool(torch.isfinite(moments).all()):
        raise AbridgedError(f"the inputs of {source.name} are not all finite (NaN or infinity)")
    moments = moments.double()
    damping = DAMPING * moments.diagonal().mean().clamp_min(1e-10) * torch.eye(len(moments)).to(moments)
    moments = moments + damping
    if crossed is not None:
        weight.copy_(torch.linalg.solve(moments, (weight.double() @ (crossed + damping)).t()).t())
        source.refit()
    quantizer, original = source.quantizer, weight.clone()
    lines = weight.view(source.num_scales, -1)
    fit, grid = quantizer.fit(lines), quantizer.grid

    def spread(values: Tensor) -> Tensor:  # (num_scales, 1) to (rows, columns)
        return values.expand_as(lines).reshape(weight.shape)

    scale = spread(fit.scale)
    center = torch.zeros_like(weight) if fit.center is None else spread(fit.center)
    odd, top = grid.kind == "odd", grid.top
    farthest = 0.999 * grid.bound if source.settings.clips_weight_gradient else _FARTHEST

    order = torch.argsort(moments.diagonal(), descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left, s, c = weight[:, order], scale[:, order], center[:, order]
    masters = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            units = ((left[:, j] - c[:, j]) / s[:, j]).clamp(-farthest, farthest)
            masters[:, j] = units * s[:, j] + c[:, j]
            rounded = round_to_levels_(units, top, odd).mul_(s[:, j])
            errors[:, j - start] = (left[:, j] - rounded) / upper[j, j]
            left[:, j + 1 : stop] -= errors[:, j - start, None] * upper[j, j + 1 : stop]
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    weight.copy_(masters[:, torch.argsort(order)])
    lines = weight.view(source.num_scales, -1)
    if fit.center is not None:
        lines.copy_(_balanced(lines - fit.center) + fit.center)
    quantizer.take_scale(lines, fit.scale)
    if grid.code_book == "binary":  # signs do not depend on the scale, so that the best one is in closed form
        quantizer.take_scale(lines, fit.scale * _best_multiple(source, original, moments.float()))


def _balanced(lines: Tensor) -> Tensor:
    """Lines with their signs and a mean of 0, so that the mean which is taken off them is what it was."""
    above, below = lines.clamp_min(0), lines.clamp_max(0)
    up, down = above.sum(1, keepdim=True), -below.sum(1, keepdim=True)
    half = (up + down) / 2
    both = (up > 0) & (down > 0)
    return torch.where(both, above * (half / up.clamp_min(1e-20)) + below * (half / down.clamp_min(1e-20)), lines)


def _best_multiple(source: QuantizedWeight, original: Tensor, moments: Tensor) -> Tensor:
    """What the scales (num_scales, 1) must be multiplied by for the least error of the outputs; one number a row."""
    rounded = source()
    against, own = ((matrix @ moments * rounded).sum(1) for matrix in (original, rounded))
    blocks = source.num_scales if source.settings.granularity == "tensor" else len(original)
    best = against.view(blocks, -1).sum(1) / own.view(blocks, -1).sum(1).clamp_min(1e-20)
    return best.clamp(0.25, 4.0).repeat_interleave(source.num_scales // blocks).unsqueeze(1)

"""Follows a model's layers through one pass beside the model in full precision, each changed when its turn comes.

So each layer sees its inputs as those changed before it leave them, and can make up for what that has done to them:
GPTAQ (Li et al., arXiv:2504.02692).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.core.hardware import give_back_memory
from abridged.core.progress import counter

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate

#: Tokens that are read for it, all at once: some times the columns of the matrices that such models have.
TOKENS = 16_384
#: Tokens whose squares are held at once.
_ROWS = 1024
#: Added to the diagonal of the inputs' second moments, of its mean: few tokens leave directions unseen.
DAMPING = 0.05


View = Callable[[Tensor], Tensor]
"""Makes of a layer's inputs (…, columns) what is looked at instead."""


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
        self._hooks = [model.get_submodule(path).register_forward_pre_hook(self._hook(path)) for path in paths]
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
        """End the pass where it is, and leave the model as it was."""
        self._stopped.set()
        self._thread.join()
        for hook in self._hooks:
            hook.remove()

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
        except _Enough:  # not to be kept: its frames hold all that the pass was at
            return
        except Exception as error:  # raised where the other model waits for the next input
            ended = error
        with suppress(_Enough):
            self._put("", ended)


def in_lockstep(
    model: nn.Module,
    before: nn.Module | None,
    paths: list[str],
    calibrate: Calibrate,
    take: Callable[[str, Tensor, Tensor | None], None],
    title: str,
    constant: bool = False,
    views: Mapping[str, tuple[View, View]] | None = None,
    tokens: int = TOKENS,
    cap: float | None = None,
) -> None:
    """Run one batch of tokens through `model` and call `take(path, XᵀX, ZᵀX)` as it meets each layer at `paths`.

    X (tokens, columns) are the layer's inputs, and Z those that it has in `before`, the model in full precision; ZᵀX
    is None without one, and where the two come to their layers in different orders. `take` may change the layer that it
    is called for, which then goes on with the pass, and the two matrices: a layer that is met next with the same inputs
    (keys after queries) is given the same objects. The pass ends with the last of the layers. Padding is left out where
    the model is given masks. With `constant`, X and Z have a last column of 1, which stands for biases. `views`
    say of some paths what stands for X and for Z there, (…, any width), made of the inputs. `cap` is how many times the
    energy of the median token one may have: those above, whose massive activations would stand for the whole text, are
    scaled down to it, in X and Z alike.
    """
    masks: list[Tensor] = []
    met: list[Any] = []  # the last X and Z, and what was made of them

    def look(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        given = (named.get(name) for name in ("decoder_attention_mask", "attention_mask"))
        masks[:] = [mask for mask in given if mask is not None]

    def meet(path: str, module: Any, x: Tensor) -> None:
        mask = next((mask for mask in masks if x.dim() > 2 and mask.shape == x.shape[:2]), None)

        def rows(inputs: Tensor) -> Tensor:
            kept = inputs.detach() if mask is None else inputs.detach()[mask.bool()]
            flat = kept.reshape(-1, inputs.shape[-1])
            if constant:
                return nn.functional.pad(flat.float(), (0, 1), value=1.0)
            # a copy: it is scaled in place, and kept while the models go on with what it was made of, and change that
            return flat.to(torch.float32, copy=True)

        with torch.autocast(x.device.type, enabled=False):
            own, theirs = (views or {}).get(path, (getattr(module, "prepared_inputs", as_is), as_is))
            mine = own(x)
            if met and met[0].shape[1] != mine.shape[-1] + constant:  # let go before others are made
                met.clear()
            z = whole.at(path) if whole else None
            give_back_memory()  # what the passes have freed since the last layer, which the allocator keeps
            after = rows(mine)
            aim = None if z is None else rows(theirs(z))
            if cap is not None:
                weights = token_weights(after, cap)
                after.mul_(weights)
                if aim is not None:
                    aim.mul_(weights)
            if not (met and _same(met[0], after) and _same(met[1], aim)):
                met.clear()
                met.extend((after, aim, gram(after), None if aim is None else aim.t() @ after))
            take(path, met[2], met[3])
        waiting.discard(path)
        show(len(paths) - len(waiting), len(paths))
        if not waiting:
            raise _Enough

    def hook(path: str) -> Callable[..., None]:
        return lambda module, arguments: meet(path, module, arguments[0])

    waiting = set(paths)
    hooks = [model.register_forward_pre_hook(look, with_kwargs=True)]
    hooks += [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    whole = None if before is None else Inputs(before, paths, lambda model: calibrate(model, tokens))
    try:
        with counter(title) as show, suppress(_Enough):
            calibrate(model, tokens)
    finally:
        if whole:
            whole.stop()
        for handle in hooks:
            handle.remove()


def gram(x: Tensor) -> Tensor:
    """XᵀX (columns, columns) of x (tokens, columns), of wide ones little more than the half above the diagonal."""
    columns = x.shape[1]
    step, found = max(512, -(-columns // 8)), x.new_empty(columns, columns)
    for start in range(0, columns, step):
        part, rest = slice(start, start + step), slice(start + step, columns)
        found[part, start:] = x[:, part].t() @ x[:, start:]
        found[rest, part] = found[part, rest].t()
    return found


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def token_weights(x: Tensor, cap: float) -> Tensor:
    """What tokens (tokens, columns) are multiplied by, (tokens, 1), to have at most `cap` times the median's energy."""
    energy = torch.cat([part.square().mean(1, keepdim=True) for part in x.split(_ROWS)])
    most = cap * energy.median()
    return (
        torch.where(energy > most, (most / energy.clamp_min(1e-30)).sqrt(), 1.0)
        if most > 0
        else torch.ones_like(energy)
    )


def as_is(x: Tensor) -> Tensor:
    """The view of what is looked at as it comes."""
    return x


def check_finite(name: str, *found: Tensor | None) -> None:
    """Raise AbridgedError where what was found of a layer's inputs is not finite."""
    if not all(bool(torch.isfinite(one).all()) for one in found if one is not None):
        raise AbridgedError(f"the inputs of {name} are not all finite (NaN or infinity)")


def target(
    weight: Tensor, moments: Tensor, crossed: Tensor | None, name: str, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """What a weight (rows, columns) is to come near to, W·ZᵀX·(XᵀX)⁻¹, and XᵀX damped, in FP64.

    With it the outputs come nearest to those of the inputs Z; without ZᵀX (`crossed`) it is the weight itself.

    Raises AbridgedError, which says `name`, where the inputs are not finite.
    """
    check_finite(name, moments, crossed)
    moments = moments.to(torch.float64, copy=True)  # of wide layers these are large: one copy each, changed in place
    added = damping * moments.diagonal().mean().clamp_min(1e-10)
    moments.diagonal().add_(added)
    if crossed is None:
        return weight, moments
    crossed = crossed.to(torch.float64, copy=True)
    crossed.diagonal().add_(added)
    wanted = (weight.double() @ crossed).t()
    del crossed
    return torch.linalg.solve(moments, wanted).t().to(weight.dtype), moments

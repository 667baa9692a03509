"""A large batch, a few texts at a time through each layer of an encoder.

What a layer makes of 32 texts of 128 tokens, 50 MB in the feed-forward of BERT-base, goes to memory and comes back, and
where it is allocated anew takes longer still. Packed weights are small enough to be read again for every few texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from abridged.storage.view import View

#: Tokens that pass a layer together: so many that unpacking the weights takes little of the time.
TOKENS = 512


def install(model: Any, view: View) -> None:
    """Let the encoder layers of a packed model, whose texts do not see each other, read their batches in portions."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    inside = set(encoder.modules())
    for path in view.blocks:
        block = model.get_submodule(path)
        attentions = [model.get_submodule(a) for a in view.attentions if a.startswith(path + ".")]
        if getattr(block, "rows_meet", False):  # frames of one video, which see each other
            continue
        if block in inside and attentions and not any(getattr(a, "is_causal", True) for a in attentions):
            block.forward = Portions(block, block.forward)


class Portions:
    """Stands in for a layer's `forward`."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Tensor]) -> None:
        self.layer, self._forward = layer, forward

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, length = hidden_states.shape[:2]
        portion = max(1, TOKENS // length)
        if rows <= portion or not self._may_split(rows, args, kwargs):
            return self._forward(hidden_states, *args, **kwargs)
        made = torch.empty_like(hidden_states)
        for start in range(0, rows, portion):
            part = slice(start, start + portion)
            given = {key: _part_of(value, rows, part) for key, value in kwargs.items()}
            answer = self._forward(hidden_states[part], *(_part_of(v, rows, part) for v in args), **given)
            if not isinstance(answer, Tensor):  # a layer that gives more than states is asked for all at once
                return self._forward(hidden_states, *args, **kwargs)
            made[part] = answer
        return made

    def _may_split(self, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Not where gradients are kept, somebody looks inside, or something is given that is not by text."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.layer.training:
            return False
        if any(module._forward_hooks for module in self.layer.modules() if module is not self.layer):
            return False  # transformers collects attention maps by hooks
        return all(_fits(v, rows) for v in (*args, *kwargs.values()))


def _fits(value: Any, rows: int) -> bool:
    if isinstance(value, tuple):  # cosines and sines
        return all(_fits(v, rows) for v in value)
    if isinstance(value, Tensor):
        return value.dim() > 1 and value.shape[0] in (1, rows)
    return isinstance(value, (bool, int, float, str, type(None)))


def _part_of(value: Any, rows: int, part: slice) -> Any:
    if isinstance(value, tuple):
        return tuple(_part_of(v, rows, part) for v in value)
    return value[part] if isinstance(value, Tensor) and value.shape[0] == rows else value

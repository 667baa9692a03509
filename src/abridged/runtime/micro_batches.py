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

#: Tokens that pass a layer together: so many that unpacking the weights takes little of the time.
TOKENS = 512

#: transformers' encoder layers, which take (B, T, d) states, a mask and settings, and return (B, T, d).
_ENCODER_LAYERS = ("BertLayer", "RobertaLayer", "BartEncoderLayer", "MBartEncoderLayer", "PegasusEncoderLayer")


def install(model: nn.Module) -> None:
    """Let the encoder layers of a packed model read their batches in portions."""
    for module in model.modules():
        if type(module).__name__ in _ENCODER_LAYERS:
            module.forward = Portions(module, module.forward)


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
            made[part] = self._forward(hidden_states[part], *(_part_of(v, rows, part) for v in args), **given)
        return made

    def _may_split(self, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Not where gradients are kept, somebody looks inside, or something is given that is not by text."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.layer.training:
            return False
        if any(module._forward_hooks for module in self.layer.modules() if module is not self.layer):
            return False  # transformers collects attention maps by hooks
        plain = (Tensor, bool, int, float, str, type(None))
        return all(isinstance(v, plain) and _fits(v, rows) for v in (*args, *kwargs.values()))


def _fits(value: Any, rows: int) -> bool:
    return not isinstance(value, Tensor) or (value.dim() > 1 and value.shape[0] in (1, rows))


def _part_of(value: Any, rows: int, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) and value.shape[0] == rows else value

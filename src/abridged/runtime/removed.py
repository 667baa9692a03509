"""What stands in a model where a part was taken out: it adds nothing to the residual stream, which passes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class NoMatrix(nn.Module):
    """In place of a linear layer: nothing of an input, and of nothing a zero that fits whatever it is added to.

    So the first matrices of a part make rows without any columns, which go through gates, also where they are cut in
    two as Phi-3's are, and the last one a zero without dimensions.
    """

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(0), persistent=False)  # transformers looks for one to initialise

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, n) -> (…, 0); (…, 0) or () -> ()."""
        return x.new_zeros((*x.shape[:-1], 0) if x.dim() and x.shape[-1] else ())


class NoAttention(nn.Module):
    """In place of an attention module: adds nothing, and keeps count of the tokens in the cache.

    A cache knows its length by its first layer's keys, so that a layer without any would lose the position.
    """

    def __init__(self, layer_idx: int | None = None) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """hidden_states: (B, T, d) -> (), and no probabilities."""
        cache = kwargs.get("past_key_values")
        across = kwargs.get("key_value_states", kwargs.get("encoder_hidden_states"))
        if cache is not None and self.layer_idx is not None:
            self._count(cache, hidden_states, across)
        return hidden_states.new_zeros(()), None

    def _count(self, cache: Any, hidden_states: Tensor, across: Tensor | None) -> None:
        own = getattr(cache, "self_attention_cache", cache)
        if across is not None:
            if cache.is_updated.get(self.layer_idx):
                return
            own, hidden_states = cache.cross_attention_cache, across
            cache.is_updated[self.layer_idx] = True
        keys = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
        own.update(keys, keys, self.layer_idx)

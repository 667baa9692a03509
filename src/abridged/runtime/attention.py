"""Attention whose queries, keys, values and probabilities may be quantised: transformers' implementation "abridged".

Registered for the attention function and for its mask: with the first alone the mask is None, and the future leaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

IMPLEMENTATION = "abridged"
ROLES = ("query", "key", "value", "probabilities")


class QuantizedAttention(nn.Module):
    """The activation quantisers of an attention module, which carries this as `attention_quantizers`.

    Probabilities are never negative and want an asymmetric quantiser; the others are symmetric.
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, probabilities: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value, self.probabilities = query, key, value, probabilities


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention as transformers' eager one, with `module.attention_quantizers` where there are any.

    `query` (B, heads, T, d), `key` and `value` (B, key heads, S, d), `attention_mask` (B, 1, T, S) added to the
    scores. Returns the output (B, T, heads, d) and the probabilities (B, heads, T, S) before their quantisation.
    Raises ValueError when a causal module gets no mask for several queries: the future would leak.
    """
    if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False):
        raise ValueError("causal attention was called without a mask; its mask function is not registered")
    quantizers = getattr(module, "attention_quantizers", None)
    if quantizers is not None:
        query, key, value = quantizers.query(query), quantizers.key(key), quantizers.value(value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    probabilities = torch.softmax(scores, dim=-1).to(value.dtype)
    used = probabilities if quantizers is None else quantizers.probabilities(probabilities)
    used = nn.functional.dropout(used, p=dropout, training=module.training)
    return torch.matmul(used, value).transpose(1, 2).contiguous(), probabilities


def register_attention() -> None:
    """Make "abridged" known to transformers; safe to call again."""
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


register_attention()

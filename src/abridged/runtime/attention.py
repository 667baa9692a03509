"""What transformers finds as attention implementations of ours: "abridged", whose queries, keys, values and
probabilities may be quantised, and "abridged_sdpa", which does what its "sdpa" does, on the compiled kernels.

Each is registered for the attention function and for its mask: with the first alone the mask is None, and the future
leaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from abridged.runtime import kernels

IMPLEMENTATION = "abridged"
ON_KERNELS = "abridged_sdpa"
#: Below so many queries, copying the keys takes longer than it saves.
FEWEST = 8
ROLES = ("query", "key", "value", "probabilities")


class QuantizedAttention(nn.Module):
    """The activation quantisers of an attention module, which carries this as `attention_quantizers`.

    Probabilities are never negative and want an asymmetric quantiser; the others are symmetric.
    """

    def __init__(self, query: nn.Module, key: nn.Module, value: nn.Module, probabilities: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value, self.probabilities = query, key, value, probabilities


def quantizers_of(module: nn.Module) -> QuantizedAttention | None:
    """The activation quantisers that an attention module carries, if it does."""
    found: QuantizedAttention | None = getattr(module, "attention_quantizers", None)
    return found


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention as transformers' eager one, with `module.attention_quantizers` where there are any.

    `query` (B, heads, T, d), `key` and `value` (B, key heads, S, d); `position_bias` (1 or B, heads, T, S), as T5 has
    one, and `attention_mask` (B, 1, T, S) are added to the scores, which pass `softcap * tanh(scores / softcap)` before
    (Gemma 2). Returns the output (B, T, heads, d) and the probabilities (B, heads, T, S) before their quantisation.
    Raises ValueError when a causal module gets no mask for several queries, for the future would leak, and for what
    else would be left out without a word (GPT-OSS's sinks).
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("attention with sinks cannot be quantised, nor can its probabilities be seen")
    if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", False):
        raise ValueError("causal attention was called without a mask; its mask function is not registered")
    quantizers = quantizers_of(module)
    if quantizers is not None:
        query, key, value = quantizers.query(query), quantizers.key(key), quantizers.value(value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    probabilities = _softmax(scores, value.dtype)
    used = probabilities if quantizers is None else quantizers.probabilities(probabilities)
    used = nn.functional.dropout(used, p=dropout, training=module.training)
    return torch.matmul(used, value).transpose(1, 2).contiguous(), probabilities


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Softmax in FP32 over the last axis, in a type; of what is trained, no more is kept than the result in that."""
    plain = not (torch.is_grad_enabled() and scores.requires_grad) or torch.compiler.is_compiling()
    return torch.softmax(scores, dim=-1).to(dtype) if plain else _Softmax.apply(scores, dtype)


class _Softmax(torch.autograd.Function):
    """Of long texts the probabilities are the largest of what a pass keeps, and autocast's softmax is in FP32."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
        found = torch.softmax(scores, dim=-1).to(dtype)
        ctx.save_for_backward(found)
        ctx.type = scores.dtype
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (found,) = ctx.saved_tensors
        wide = torch.promote_types(found.dtype, torch.float32)
        grad, found = grad.to(wide), found.to(wide)
        grad = grad * found  # a tensor of its own, which is changed in place
        return grad.sub_(found * grad.sum(-1, keepdim=True)).to(ctx.type), None


def attention_on_kernels(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention as transformers' "sdpa", which it falls back on where the kernels cannot serve.

    `query` (B, heads, T, d), `key` and `value` (B, key heads, S, d), `attention_mask` (B, 1, T, S) bool, True where a
    query may look. Returns the output (B, T, heads, d) and no probabilities.
    """
    queries, keys = query.shape[2], key.shape[2]
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux")) or dropout
    recorded = torch.compiler.is_compiling() or torch.is_grad_enabled()
    compiled = None if unusual or recorded else kernels.kernels()
    if compiled is not None and queries >= FEWEST and not (causal and queries != keys):
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        made = compiled.attend_all(query, key, value, attention_mask, causal, factor)
        if made is not None:
            return made, None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)


def register_attention() -> None:
    """Make both known to transformers; safe to call again."""
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    AttentionInterface.register(ON_KERNELS, attention_on_kernels)
    AttentionMaskInterface.register(ON_KERNELS, sdpa_mask)


register_attention()

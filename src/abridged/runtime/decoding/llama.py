"""One token through a LLaMA, Mistral or Qwen2."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.runtime.decoding import base
from abridged.runtime.decoding.base import attend
from abridged.runtime.decoding.cache import Appending


class Steps(base.Steps):
    """See `base.Steps`."""

    def prepare(self) -> None:
        body = self.model.model
        self.tokens, self.rotary = self.embedding(body.embed_tokens), body.rotary_emb
        self.layers = [
            (
                layer.self_attn,
                _norm(layer.input_layernorm),
                *(self.linear(getattr(layer.self_attn, f"{part}_proj")) for part in "qkvo"),
                _norm(layer.post_attention_layernorm),
                *(self.linear(getattr(layer.mlp, f"{part}_proj")) for part in ("gate", "up", "down")),
                layer.mlp.act_fn,
            )
            for layer in body.layers
        ]
        self.norm, self.head = _norm(body.norm), self.linear(self.model.lm_head)

    def step(self, ids: Tensor, layers: list[Any], length: int) -> Tensor:
        x = self.tokens(ids)
        cos, sin = self.rotary(x, torch.tensor([[length]]))  # (1, 1, d): the same for every head
        for layer, (attention, norm_1, q, k, v, o, norm_2, gate, up, down, activation) in zip(
            layers, self.layers, strict=True
        ):
            normed = F.rms_norm(x, *norm_1)
            shape = (len(ids), -1, attention.head_dim)
            query, key = _turn(q(normed).view(shape), cos, sin), _turn(k(normed).view(shape), cos, sin)
            keys, values = Appending.append(layer, key, v(normed).view(shape), length)
            x = x + o(attend(attention, query[:, :, None], keys, values, attention.scaling))
            normed = F.rms_norm(x, *norm_2)
            x = x + down(activation(gate(normed)) * up(normed))
        return self.head(F.rms_norm(x, *self.norm)).clone()


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of x (B, heads, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _norm(module: Any) -> tuple[Any, ...]:
    return module.weight.shape, module.weight.float(), module.variance_epsilon

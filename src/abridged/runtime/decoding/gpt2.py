"""One token through a GPT-2."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from abridged.runtime.decoding import base
from abridged.runtime.decoding.base import attend
from abridged.runtime.decoding.cache import Appending


class Steps(base.Steps):
    """See `base.Steps`."""

    def prepare(self) -> None:
        body = self.model.transformer
        self.tokens, self.positions = self.embedding(body.wte), body.wpe.weight
        self.layers = [
            (
                block.attn,
                _norm(block.ln_1),
                self.linear(block.attn.c_attn),
                self.linear(block.attn.c_proj),
                _norm(block.ln_2),
                self.linear(block.mlp.c_fc),
                block.mlp.act,
                self.linear(block.mlp.c_proj),
            )
            for block in body.h
        ]
        self.norm, self.head = _norm(body.ln_f), self.linear(self.model.lm_head)

    def step(self, ids: Tensor, layers: list[Any], length: int) -> Tensor:
        x = self.tokens(ids).add_(self.positions[length])
        for layer, (attention, norm_1, qkv, projection, norm_2, up, activation, down) in zip(
            layers, self.layers, strict=True
        ):
            shape = (len(ids), 3, -1, 1, attention.head_dim)  # layers may differ in their heads
            query, key, value = qkv(F.layer_norm(x, *norm_1)).view(shape).unbind(1)
            keys, values = Appending.append(layer, key[:, :, 0], value[:, :, 0], length)
            x += projection(attend(attention, query, keys, values, attention.scaling))
            x += down(activation(up(F.layer_norm(x, *norm_2))))
        return self.head(F.layer_norm(x, *self.norm)).clone()


def _norm(module: Any) -> tuple[Any, ...]:
    return module.normalized_shape, module.weight.float(), module.bias.float(), module.eps

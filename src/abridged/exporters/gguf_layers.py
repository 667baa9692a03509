"""A LLaMA whose layers have heads and inner units of their own, as llama.cpp's architecture `deci` reads it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from abridged.exporters.gguf_families import head_size
from abridged.families import anatomy_of

ARCHITECTURE = "deci"
#: Inner units of zeros where a feed-forward part was removed: llama.cpp passes over a whole layer that has none.
_ZERO_UNITS = 32


@dataclass(frozen=True)
class LayerSizes:
    """What a pruned LLaMA has in each layer: query heads, key-value heads and inner units.

    A part that was removed is written with a few units of zeros, which change nothing.
    """

    heads: tuple[int, ...]
    groups: tuple[int, ...]
    inner: tuple[int, ...]
    config: Any  #: the model's, with the width that is left
    absent: dict[str, Tensor]  #: tensors that the model does not have any more

    @classmethod
    def of(cls, pruned: Any) -> LayerSizes:
        """Those of a pruned LLaMA."""
        anatomy, config = anatomy_of(pruned), copy.deepcopy(pruned.config)
        size = head_size(config)
        queries = config.num_attention_heads // config.num_key_value_heads
        config.hidden_size, config.head_dim = anatomy.hidden_size, size
        layers = config.num_hidden_layers
        heads, groups, inner = [queries] * layers, [1] * layers, [_ZERO_UNITS] * layers
        columns = {matrix.name: matrix.columns for matrix in anatomy.matrices}
        for part in anatomy.parts:
            layer = next(int(word) for word in part.path.split(".") if word.isdigit())
            if part.kind == "attention":
                groups[layer], heads[layer] = part.units, columns[part.output] // size
            else:
                inner[layer] = part.units
        wanted: dict[str, tuple[int, ...]] = {}
        for layer in range(layers):
            at, width = f"model.layers.{layer}", config.hidden_size
            query, key, units = heads[layer] * size, groups[layer] * size, inner[layer]
            wanted |= {f"{at}.self_attn.{name}_proj": (key, width) for name in "kv"}
            wanted |= {f"{at}.self_attn.q_proj": (query, width), f"{at}.self_attn.o_proj": (width, query)}
            wanted |= {f"{at}.mlp.{name}_proj": (units, width) for name in ("gate", "up")}
            wanted |= {f"{at}.mlp.down_proj": (width, units)}
            wanted |= {f"{at}.{name}": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        there = {name.removesuffix(".weight") for name, tensor in pruned.state_dict().items() if tensor.numel()}
        absent = {name: torch.zeros(shape) for name, shape in wanted.items() if name not in there}
        return cls(tuple(heads), tuple(groups), tuple(inner), config, absent)

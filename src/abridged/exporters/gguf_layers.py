"""A LLaMA whose layers have heads and inner units of their own, as llama.cpp's architecture `deci` reads it."""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from abridged import families
from abridged.models.gguf_architectures import head_size

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

    @classmethod
    def of(cls, pruned: Any) -> LayerSizes:
        """Those of a pruned LLaMA."""
        view, config = families.view(pruned), copy.deepcopy(pruned.config)
        size, layers = head_size(config), config.num_hidden_layers
        queries = config.num_attention_heads // config.num_key_value_heads
        config.hidden_size, config.head_dim = view.hidden_size, size
        heads, groups, inner = [queries] * layers, [1] * layers, [_ZERO_UNITS] * layers
        columns = {matrix.name: matrix.columns for matrix in view.matrices}
        for part in view.parts:
            if part.layer is None:
                continue
            if part.kind == "attention":
                groups[part.layer], heads[part.layer] = part.units, columns[part.output] // size
            else:
                inner[part.layer] = part.units
        return cls(tuple(heads), tuple(groups), tuple(inner), config)

    @property
    def described(self) -> dict[str, tuple[int, ...]]:
        """In GGUF's words."""
        return {"head_count": self.heads, "head_count_kv": self.groups, "feed_forward_length": self.inner}

    def absent(self, written: Container[str]) -> dict[str, Tensor]:
        """Zeros for the tensors of the file that the model does not have any more."""
        wanted: dict[str, tuple[int, ...]] = {}
        width, size = self.config.hidden_size, self.config.head_dim
        for layer, (heads, groups, units) in enumerate(zip(self.heads, self.groups, self.inner, strict=True)):
            shapes = {"attn_norm": (width,), "attn_q": (heads * size, width), "attn_output": (width, heads * size)}
            shapes |= {"attn_k": (groups * size, width), "attn_v": (groups * size, width), "ffn_norm": (width,)}
            shapes |= {"ffn_gate": (units, width), "ffn_up": (units, width), "ffn_down": (width, units)}
            wanted |= {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        return {name: torch.zeros(shape) for name, shape in wanted.items() if name not in written}

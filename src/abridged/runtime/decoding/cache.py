"""transformers' DynamicCache with keys and values appended in place, instead of all copied at every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

#: Tokens for which room is made at a time.
ROOM = 256


class Appending:
    """The keys and values of one layer of a cache, as parts of buffers with room for more.

    The cache's own tensors become views of the buffers, so whoever reads or replaces them sees what is right; tensors
    that are no such views (any more) are copied once.
    """

    @staticmethod
    def length(cache: Any) -> int:
        """Tokens in a cache of the plain kind; 0 for an empty one or one of another kind."""
        if type(cache) is not DynamicCache or not cache.layers:
            return 0
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return 0
        return cache.layers[0].get_seq_length()

    @staticmethod
    def append(layer: Any, key: Tensor, value: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Add key and value (B, heads, d) after `length` tokens; return all of them, (B, heads, length + 1, d)."""
        keys, values = layer.keys, layer.values
        buffers = getattr(layer, "abridged_buffers", None)
        if (
            buffers is None
            or length == buffers[0].shape[2]
            or keys.data_ptr() != buffers[0].data_ptr()
            or values.data_ptr() != buffers[1].data_ptr()
            or keys.shape[0] != buffers[0].shape[0]
        ):
            buffers = layer.abridged_buffers = _grown(keys), _grown(values)
        both = []
        for buffer, new in zip(buffers, (key, value), strict=True):
            buffer.select(2, length).copy_(new)
            both.append(buffer.narrow(2, 0, length + 1))
        layer.keys, layer.values = both
        return both[0], both[1]


def _grown(tensor: Tensor) -> Tensor:
    batch, heads, length, width = tensor.shape
    buffer = torch.empty(batch, heads, length + ROOM, width, dtype=tensor.dtype)
    buffer[:, :, :length] = tensor
    return buffer

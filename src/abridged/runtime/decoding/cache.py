"""transformers' DynamicCache with keys and values appended in place, instead of all copied at every token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

#: Tokens for which room is made at a time.
ROOM = 256


class Appending:
    """The keys and values of one layer of a cache, as parts of buffers with room for more.

    The cache's own tensors become views of the buffers, so whoever reads or replaces them sees what is right. What was
    written is never written again, for somebody may have kept it: tensors that are no such views (any more), or do not
    end where the buffers' tokens do, as those of another branch of the text, are copied once. A layer with a sliding
    window keeps what the next token sees: its views move along the buffers.
    """

    @staticmethod
    def length(cache: Any) -> int:
        """Tokens that have passed a cache of the plain kinds; 0 for an empty one or one of another kind."""
        if type(cache) is not DynamicCache or not cache.layers:
            return 0
        for layer in cache.layers:
            kind = type(layer)
            if kind is not DynamicLayer and (kind is not DynamicSlidingWindowLayer or layer.record_past):
                return 0
        return cache.layers[0].get_seq_length()

    @staticmethod
    def fits(cache: Any, windows: list[int | None]) -> bool:
        """Whether the layers keep what layers of attention with these windows see."""
        return len(cache.layers) == len(windows) and all(
            type(layer) is DynamicLayer or layer.sliding_window == window
            for layer, window in zip(cache.layers, windows, strict=True)
        )

    @staticmethod
    def append(layer: Any, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Add key and value (B, heads, d); return those that the new token sees, (B, heads, at most window, d)."""
        keys, values = Appending.extended(layer, window)
        keys.select(2, -1).copy_(key)
        values.select(2, -1).copy_(value)
        return keys, values

    @staticmethod
    def extended(layer: Any, window: int | None) -> tuple[Tensor, Tensor]:
        """Keys and values that a new token sees, (B, heads, at most window, d), the last of which is to be written."""
        keys, values = layer.keys, layer.values
        held = keys.shape[2]
        buffers = getattr(layer, "abridged_buffers", None)
        if (
            buffers is None
            or keys.data_ptr() != buffers.pointers[0]
            or values.data_ptr() != buffers.pointers[1]
            or len(keys) != buffers.batch
            or buffers.start + held != buffers.filled
            or buffers.filled == buffers.room
        ):
            buffers = layer.abridged_buffers = _Buffers(keys, values)
        end, buffers.filled = buffers.filled, buffers.filled + 1
        seen = held + 1 if window is None else min(held + 1, window)
        both = buffers.part(end + 1 - seen, seen)
        if type(layer) is DynamicLayer:
            layer.keys, layer.values = both if seen == held + 1 else buffers.part(buffers.start, held + 1)
        else:
            kept = min(seen, layer.sliding_window - 1)
            buffers.start = end + 1 - kept
            layer.cumulative_length += 1
            layer.keys, layer.values = buffers.part(buffers.start, kept)
            buffers.pointers = layer.keys.data_ptr(), layer.values.data_ptr()
        return both


def in_8_bits(tensor: Tensor) -> Tensor:
    """Keys or values (B, heads, S, d) as (B, heads, S, 4 + d) int8: of each token and head the scale, by the largest
    value, as the bytes of an FP32 number, and behind it the integers."""
    wide = tensor.float()
    scale = wide.abs().amax(-1, keepdim=True) / 127
    levels = torch.where(scale > 0, wide / scale, 0.0).round()
    return torch.cat([scale.contiguous().view(torch.int8), levels.to(torch.int8)], -1)


class _Buffers:
    """Room for more tokens behind keys and values (B, heads, S, d); those in use begin at `start`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = _grown(keys), _grown(values)
        self.batch, self.room, self.start, self.filled = len(keys), keys.shape[2] + ROOM, 0, keys.shape[2]
        self.pointers = self.keys.data_ptr(), self.values.data_ptr()  #: of the first token in use

    def part(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        return self.keys.narrow(2, start, count), self.values.narrow(2, start, count)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Nothing, None: a cache that is copied or stored has tensors of its own, which are no parts of these."""
        return type(None), ()


def _grown(tensor: Tensor) -> Tensor:
    batch, heads, length, width = tensor.shape
    buffer = torch.empty(batch, heads, length + ROOM, width, dtype=tensor.dtype)
    buffer[:, :, :length] = tensor
    return buffer

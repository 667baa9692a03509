"""One pass of a model, watched: what every matrix, norm, embedding and call of attention was given and gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.pytorch_utils import Conv1D

from abridged.runtime.attention import attention
from abridged.runtime.kronecker import Factored, KroneckerEmbedding
from abridged.runtime.modules import PackedEmbedding, PackedLinear

_WATCHED = "abridged_watched"
_WATCHERS: list[Any] = []


@dataclass
class Event:
    """A call of a module, of one text: inputs and output of matrices and norms are (T, columns) FP32."""

    kind: str  #: linear, embedding, norm, rotary, attention or block
    path: str
    module: Any
    given: Any
    made: Any
    extra: dict[str, Any] = field(default_factory=dict)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    made = attention(module, query, key, value, mask, **kwargs)
    for watcher in _WATCHERS:
        watcher(module, (query, key, value), made[0], kwargs)
    return made


AttentionInterface.register(_WATCHED, _attend)
AttentionMaskInterface.register(_WATCHED, eager_mask)


@contextmanager
def watched(model: Any) -> Iterator[list[Event]]:
    """The events of passes within, in the order in which they end; the model is left as it was."""
    events: list[Event] = []
    paths = {module: path for path, module in model.named_modules()}

    def saw(module: Any, given: Any, made: Any, kwargs: Any) -> None:
        if module in paths:
            heads = [t[0].transpose(0, 1).float().clone() for t in given]  # (T, heads, d)
            events.append(Event("attention", paths[module], module, heads, _rows(made.flatten(-2)), dict(kwargs)))

    handles = [
        module.register_forward_hook(_recorder(kind, path, events), with_kwargs=True)
        for module, path in paths.items()
        if (kind := _kind(module, path, model)) is not None
    ]
    configs = list({id(m.config): m.config for m in paths if hasattr(m, "config")}.values())
    before = [config._attn_implementation for config in configs]
    _WATCHERS.append(saw)
    try:
        for config in configs:
            config._attn_implementation = _WATCHED
        yield events
    finally:
        _WATCHERS.remove(saw)
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
        for handle in handles:
            handle.remove()


def _kind(module: nn.Module, path: str, model: nn.Module) -> str | None:
    parent = path.rpartition(".")[0]
    if any(isinstance(model.get_submodule(parent[:i]), Factored) for i in _ends(parent)):
        return None
    if isinstance(module, (nn.Embedding, PackedEmbedding, KroneckerEmbedding)):
        return "embedding"
    if isinstance(module, (nn.Linear, Conv1D, PackedLinear, Factored)):
        return "linear"
    if isinstance(model.get_submodule(parent), nn.ModuleList):
        return "block"
    if next(module.children(), None) is None:
        own = list(module.parameters())
        if not own:
            return "rotary"  # if it turns out to give cosines and sines
        if all(p.ndim == 1 for p in own):
            return "norm"
    return None


def _ends(path: str) -> list[int]:
    return [i for i in range(len(path)) if path[i] == "."] + [len(path)]


def _recorder(kind: str, path: str, events: list[Event]) -> Any:
    def record(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        if kind == "rotary":
            if isinstance(made, tuple) and len(made) == 2 and all(isinstance(t, Tensor) for t in made):
                events.append(Event(kind, path, module, args, [_rows(t) for t in made], kwargs))
            return
        first = args[0] if args else next(iter(kwargs.values()), None)
        if kind == "block":
            made, first = made[0] if isinstance(made, tuple) else made, args[0] if args else kwargs.get("hidden_states")
        if isinstance(made, Tensor) and isinstance(first, Tensor):
            events.append(Event(kind, path, module, _rows(first), _rows(made)))

    return record


def _rows(tensor: Tensor) -> Tensor:
    """(T, columns) of one text; heads of a norm may come as (1, T, heads, d) or (1, heads, T, d), and stay in order."""
    return tensor.detach().reshape(-1, tensor.shape[-1]).to(torch.float32, copy=True)

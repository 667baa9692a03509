"""What attention modules of transformers call their heads: a module that was cut is told how many it has."""

from __future__ import annotations

from typing import Any

from abridged.core.errors import AbridgedError

#: The number of query heads, the width of all of them, and that of one.
_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_WIDTHS = ("split_size", "all_head_size", "inner_dim")
_WIDTH = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")


def head_width(attention: Any) -> int | None:
    """Columns of one head; None of what is no attention module."""
    return next((int(getattr(attention, name)) for name in _WIDTH if getattr(attention, name, None)), None)


def set_heads(attention: Any, heads: int, path: str = "") -> None:
    """Tell an attention module how many query heads it has; it keeps as many of them to a key-value head as before.

    Raises AbridgedError where it is no attention module, or has fewer.
    """
    width = head_width(attention)
    if width is None:
        raise AbridgedError(f"quantization_config: {path} is a {type(attention).__name__}, which has no heads")
    before = next((getattr(attention, name) for name in _HEADS if hasattr(attention, name)), None)
    if before is not None and heads > before:
        raise AbridgedError(f"quantization_config: {path} has {heads} heads, config.json gives it fewer")
    groups = getattr(attention, "num_key_value_groups", None)
    own = {"num_attention_heads": heads}
    if groups:
        own["num_key_value_heads"] = heads // groups
        if hasattr(attention, "num_key_value_heads"):
            attention.num_key_value_heads = heads // groups
    for name in _HEADS:
        if hasattr(attention, name):
            setattr(attention, name, heads)
    for name in _WIDTHS:
        if hasattr(attention, name):
            setattr(attention, name, heads * width)
    if hasattr(attention, "config"):  # Phi-3 reads there where its queries end
        attention.config = OwnHeads(attention.config, **own)


class OwnHeads:
    """A model's config with a layer's own number of heads; everything else is the model's, now and later."""

    def __init__(self, config: Any, **own: int) -> None:
        if isinstance(config, OwnHeads):
            config = config._shared
        self.__dict__.update(own, _shared=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # while it is copied, before it has any
            raise AttributeError(name)
        return getattr(self._shared, name)

"""The ways to make a model smaller, by the name a recipe calls them."""

from __future__ import annotations

from collections import UserDict
from typing import Any

from abridged.core.lazy import load
from abridged.methods.base import Method

__all__ = ["METHODS", "Method"]


class _Methods(UserDict[str, Any]):
    """Names to method classes; a class is imported when it is first asked for."""

    def __getitem__(self, name: str) -> type[Method]:
        found: type[Method] = load(self.data[name])
        return found


METHODS = _Methods(
    {
        "quantize": "abridged.methods.quantization.method:Quantize",
        "kronecker": "abridged.methods.kronecker.method:Kronecker",
        "drop_layers": "abridged.methods.layers:DropLayers",
        "prune": "abridged.methods.pruning.method:Prune",
        "lora": "abridged.methods.lora:Lora",
        "prompt_tuning": "abridged.methods.prompt_tuning:PromptTuning",
    }
)

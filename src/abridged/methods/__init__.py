"""The ways to make a model smaller, by the name a recipe calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from abridged.methods.base import Method

__all__ = ["METHODS", "Method"]


class _Methods(Mapping[str, type[Method]]):
    """Names to method classes; a class is imported when it is first asked for."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def __getitem__(self, name: str) -> type[Method]:
        module, _, attribute = self._paths[name].partition(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


METHODS = _Methods(
    {
        "quantize": "abridged.methods.quantization.method:Quantize",
        "kronecker": "abridged.methods.kronecker.method:Kronecker",
        "drop_layers": "abridged.methods.layers:DropLayers",
        "prune": "abridged.methods.pruning.method:Prune",
        "lora": "abridged.methods.lora:Lora",
    }
)

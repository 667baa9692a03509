"""Registers the checkpoint format with transformers as soon as transformers is there, without importing it."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TARGET = "transformers.quantizers.auto"
"""The module that holds transformers' table of quantisation methods."""


def _register() -> None:
    # Importing the module registers. It may be this very import that brought transformers in: then the module is
    # half executed now, and registers when it gets to its end.
    importlib.import_module("abridged.checkpoint.hf")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the other finders find ``TARGET`` and registers after it has been executed."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != TARGET:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Register now if transformers' quantisers are imported already, else right after they will be."""
    if TARGET in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())

"""A quick start for a process that runs one model: what of transformers and torch it does not need can wait.

Importing transformers looks for names through the files of all its types of models, and brings in torch's compiler and
what shares a model among machines. That takes longer than a packed model takes to load and answer. Here modules stand
in for these packages that let submodules through and know the few names that a run asks for. Whoever asks for another
gets the package itself, and everything is as if it had been imported at once.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: Where names of transformers are found without a list of all its models, beside tokenizers named after one.
_HOMES = (
    "models.auto.configuration_auto",
    "models.auto.modeling_auto",
    "models.auto.tokenization_auto",
    "modeling_utils",
    "configuration_utils",
)
_COMPILER = "torch._dynamo"
#: Whose one class transformers imports by name, to trace what it makes masks of.
_TRACED = f"{_COMPILER}._trace_wrapped_higher_order_op"


def quick_start() -> None:
    """Put the stand-ins in place, where transformers has not been imported. The process is to compile nothing and to
    share nothing with others: it may, but what was imported until then does not know of it."""
    if "transformers" in sys.modules:
        return
    import torch  # itself: it may need of its compiler what is left out here

    if _COMPILER not in sys.modules:
        _Package(_COMPILER, _decorator)
        _Package(_TRACED, lambda name: lambda *args: getattr(_real(_TRACED), name)(*args))
        sys.meta_path.insert(0, _Compiler())
    _Package("transformers", _found)
    _Package("transformers.models", lambda name: None)
    torch_is_shared, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    try:
        utils: Any = importlib.import_module("transformers.utils")
        utils.import_utils.is_torch_distributed_available()  # it keeps the answer
    finally:
        torch.distributed.is_available = torch_is_shared
    # which processors of images and sounds ask for, to execute transformers a second time
    utils.direct_transformers_import = lambda *args: sys.modules["transformers"]


class _Package(ModuleType):
    """Stands in for a package: `answers` gives what a name means, or None where only the package itself knows."""

    def __init__(self, name: str, answers: Callable[[str], Any]) -> None:
        super().__init__(name)
        parent = sys.modules[name.rpartition(".")[0]].__path__ if "." in name else None
        spec = PathFinder.find_spec(name, parent)
        assert spec is not None
        self.__spec__, self.__file__, self.__package__ = spec, spec.origin, name
        self.__path__ = list(spec.submodule_search_locations or ())
        self._answers = answers
        sys.modules[name] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if not self.__name__.startswith(_COMPILER) and importlib.util.find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        answer = self._answers(name)
        return getattr(_real(self.__name__), name) if answer is None else answer


class _Compiler(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Who imports a module of torch's compiler gets all of it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        stands_in = isinstance(sys.modules.get(_COMPILER), _Package)
        if not stands_in or not fullname.startswith(f"{_COMPILER}."):
            return None
        _real(_COMPILER)
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return importlib.import_module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed."""


def _real(name: str) -> Any:
    """The module that a stand-in stands for, imported in its place, and with it those of its package."""
    top = _COMPILER if name.startswith(_COMPILER) else name
    for other in [key for key, module in sys.modules.items() if key.startswith(top) and isinstance(module, _Package)]:
        if top == _COMPILER or other == top:
            del sys.modules[other]
    return importlib.import_module(name)


def _found(name: str) -> Any:
    """A name of transformers, where it is where one looks first."""
    if name == "__version__":
        return metadata.version("transformers")
    kind = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    for home in (f"models.{kind}.tokenization_{kind}",) if "Tokenizer" in name[1:] else _HOMES:
        with suppress(AttributeError, ImportError):
            return getattr(importlib.import_module(f"transformers.{home}"), name)
    return None


def _decorator(name: str) -> Any:
    """What says of a function how it is compiled leaves it as it is."""
    if name not in ("allow_in_graph", "assume_constant_result", "disable"):
        return None
    return lambda function=None, *args, **kwargs: (lambda one: one) if function is None else function

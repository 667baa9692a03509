"""Imports a module of ours as soon as one of another package is there, without importing that."""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple


class _Follower(NamedTuple):
    name: str
    target: str
    needs: tuple[str, ...]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds nothing itself: lets the other finders find a module, and imports ours after it has been executed."""

    def __init__(self) -> None:
        self.followers: list[_Follower] = []

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        mine = [follower for follower in self.followers if fullname in (follower.target, *follower.needs)]
        if not mine:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_follow(module: ModuleType) -> None:
            execute(module)
            for follower in mine:
                others = {follower.target, *follower.needs} - {fullname}
                if (fullname == follower.target or follower.target in sys.modules) and not any(map(_is_half, others)):
                    # It may be this very import that brought the other one in: then the module is half executed now,
                    # and does what it has to when it gets to its end.
                    importlib.import_module(follower.name)

        loader.exec_module = execute_and_follow
        return spec


_FINDER = _AfterImport()


def _is_half(name: str) -> bool:
    """Whether a module is being imported just now."""
    module = sys.modules.get(name)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def after_import(target: str, follower: str, needs: tuple[str, ...] = ()) -> None:
    """Import `follower` right after `target` will be, or now if that is there already.

    needs: what the follower itself imports, and what may import the target: where one of these is being imported just
    then, its end is waited for.
    """
    if target in sys.modules:
        importlib.import_module(follower)
        return
    _FINDER.followers.append(_Follower(follower, target, needs))
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)

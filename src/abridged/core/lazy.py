"""Names of what is imported only when it is needed: "module:name"."""

from importlib import import_module
from typing import Any


def load(target: str) -> Any:
    """The attribute that "module:name" names; its module is imported now."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)

"""What a named model is, before any of its weights are read: its class and its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.families.kinds import class_named
from abridged.models.load import auto_class, load_config, unreadable


def described(name: str | Path) -> tuple[type, Any]:
    """The class of transformers that a model is of, and its config.

    Raises:
        AbridgedError: there is no such model, or transformers has no class for it.
    """
    try:
        config = load_config(name)
        named = class_named(config)
        if named is not None:
            return named, config
        found = auto_class(config)._model_mapping[type(config)]
    except AbridgedError:
        raise
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the model '{name}': {unreadable(name, error)}") from error
    return (found[0] if isinstance(found, (list, tuple)) else found), config

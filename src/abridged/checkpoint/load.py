"""Loading a checkpoint that may come from a stranger: every fault is one clear error before memory is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from abridged.checkpoint.adapters import apply_adapter, read_adapter
from abridged.checkpoint.files import CONFIG, checked_directory, is_adapter
from abridged.checkpoint.verify import verify
from abridged.core.errors import AbridgedError
from abridged.families.kinds import class_named


def load(directory: str | Path, **kwargs: Any) -> Any:
    """The model in a directory that abridged wrote, in evaluation mode, its weights packed in memory; of a directory of
    adapters the base that it names, with them.

    kwargs: passed on to ``from_pretrained`` (``dtype``, ``device_map``, …). The model class is the one that
    config.json names, so a causal language model comes back as one.
    Raises :class:`AbridgedError` for anything that is not such a directory: missing, truncated, damaged or foreign
    files, tensors that do not fit the configuration, a newer format.
    """
    if is_adapter(directory):
        found = read_adapter(directory)
        return apply_adapter(found, load(found.base, **kwargs))
    path = checked_directory(directory)
    verified = verify(path)
    import transformers

    from abridged.checkpoint.hf import already_verified

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        model_class: Any = class_named(config)
        if model_class is None:
            raise AbridgedError(f"{path / CONFIG}: architectures names no model class of transformers")
        options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        with already_verified(path, verified), _nothing_drawn():
            return model_class.from_pretrained(path, **{**kwargs, **options}).eval()
    except AbridgedError as error:
        raise AbridgedError(f"{path}: {error}") from error
    except Exception as error:  # transformers raises whatever a malformed config makes it stumble over
        reason = str(error).strip().split("\n")[0][:300]
        raise AbridgedError(f"{path} cannot be loaded: {reason or type(error).__name__}") from error


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Weights on the meta device are not initialised, within: there is nothing to write to, and to find that out torch
    imports sympy, which takes longer than the model does."""
    from torch.nn import init

    def passing_meta(function: Any) -> Any:
        @wraps(function)
        def initialise(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            return tensor if tensor.is_meta else function(tensor, *args, **kwargs)

        return initialise

    functions = {name: getattr(init, name) for name in vars(init) if name.endswith("_") and name[0] != "_"}
    for name, function in functions.items():
        setattr(init, name, passing_meta(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(init, name, function)

"""Hands a compressed checkpoint on to other tools: one file per format."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from abridged.errors import AbridgedError

#: Format name -> the "module:function" that writes it, called with (directory, output, dtype).
FORMATS = {"dense": "abridged.exporters.dense:export_dense"}


def export(directory: str | Path, output: str | Path, format: str = "dense", dtype: str = "float16") -> dict[str, Any]:
    """Write the compressed model in `directory` to `output` in another format.

    Args:
        format: "dense", an ordinary Hugging Face model that holds the quantised values.
        dtype: "float16" or "float32", what dense weights are stored in.

    Returns:
        What `abridged.inspect` says of the output.

    Raises:
        AbridgedError: the format or the dtype is unknown, the checkpoint is faulty, or `output` exists.
    """
    if format not in FORMATS:
        raise AbridgedError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    module, _, function = FORMATS[format].partition(":")
    return getattr(import_module(module), function)(directory, output, dtype)

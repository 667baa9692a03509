"""Hands a compressed checkpoint on to other tools: one file per format."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from abridged.errors import AbridgedError

#: Format name -> the "module:function" that writes it, called with (directory, output, dtype).
FORMATS = {"dense": "abridged.checkpoint.dense:export_dense"}

DTYPES = ("float16", "float32")


def export(directory: str | Path, output: str | Path, format: str = "dense", dtype: str = "float16") -> None:
    """Write the compressed model in `directory` to `output` in another format.

    Args:
        format: "dense", an ordinary Hugging Face model that holds the quantised values.
        dtype: "float16" or "float32", what dense weights are stored in.

    Raises:
        AbridgedError: the format or the dtype is unknown, the checkpoint is faulty, or `output` exists.
    """
    if format not in FORMATS:
        raise AbridgedError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    if dtype not in DTYPES:
        raise AbridgedError(f"unknown dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    module, _, function = FORMATS[format].partition(":")
    getattr(import_module(module), function)(directory, output, dtype)

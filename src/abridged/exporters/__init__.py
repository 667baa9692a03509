"""Hands a model, compressed or not, on to other tools: one file per format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.lazy import load


@dataclass(frozen=True)
class Format:
    """A format: the "module:function" that writes it, called with (directory, output, **options), and its options."""

    writer: str
    description: str
    options: tuple[str, ...] = ()


FORMATS = {
    "dense": Format(
        "dense:export_dense", "an ordinary Hugging Face model with the quantised values", ("dtype", "uniform")
    ),
    "gguf": Format("gguf:export_gguf", "a file for llama.cpp", ("ternary", "dense_fallback", "dtype", "uniform")),
    "compressed-tensors": Format(
        "compressed_tensors:export_compressed_tensors", "a directory for vLLM and transformers", ("dtype",)
    ),
    "onnx": Format("onnx:export_onnx", "a file for onnxruntime"),
    "web": Format(
        "web.site:export_web",
        "a folder with a page that runs the model in a browser",
        ("dense_fallback", "dtype", "uniform"),
    ),
}


def export(directory: str | Path, output: str | Path, format: str = "dense", **options: Any) -> dict[str, Any]:
    """Write a model to `output` in another format.

    Args:
        directory: a compressed directory, or any model that can be loaded: of that, the formats hold the dense weights.
        format: "dense", an ordinary Hugging Face model that holds the quantised values; "gguf", a file for llama.cpp;
            "compressed-tensors", a directory for vLLM and transformers; "onnx", a file for onnxruntime; "web", a
            folder that any static server serves.
        options: of the format. dense: `dtype`, "float16", "bfloat16" or "float32", what weights are stored in;
            `uniform`, True to pad the layers of a pruned model with zeros to one width. gguf: `ternary`, "TQ2_0",
            "TQ1_0" or "Q2_0"; `dense_fallback`, True to store matrices that no block fits as F16; `dtype`, to store all
            of them dense, as those of a model that is not compressed are; `uniform`, as for dense. compressed-tensors:
            `dtype`, of scales and of what is not packed. web: `dense_fallback`, `dtype` and
            `uniform`, as for gguf.

    Returns:
        An account of the output, "file_bytes" among it.

    Raises:
        AbridgedError: the format or an option is unknown, the model cannot be loaded, the format cannot hold it, or
            `output` exists.
    """
    if format not in FORMATS:
        raise AbridgedError(f"unknown format {format!r}; there are: {', '.join(FORMATS)}")
    described = FORMATS[format]
    if foreign := sorted(set(options) - set(described.options)):
        known = f"its options are {', '.join(described.options)}" if described.options else "it has none"
        raise AbridgedError(f"the format {format} has no option {foreign[0]}: {known}")
    spec = _specification(directory)
    if spec is not None and any(activation.bits == 1 for activation in spec.activations()):
        raise AbridgedError(f"{directory} has activations in 1 bit, which no other engine computes with")
    if "uniform" not in described.options and spec is not None and spec.shapes is not None:
        raise AbridgedError(f"the format {format} is not for what was pruned, as {directory} was: use dense or gguf")
    return load(f"abridged.exporters.{described.writer}")(directory, output, **options)


def _specification(directory: str | Path) -> Any:
    """What `config.json` says of how the model is stored; None where it says nothing."""
    from abridged.checkpoint.files import CONFIG, checked_directory, is_adapter, is_compressed, read_json, safe_file
    from abridged.core.names import resolve
    from abridged.storage.format import parse_spec

    where = Path(resolve(directory))
    if is_adapter(where):
        checked_directory(where)  # says what to do with it
    return parse_spec(read_json(safe_file(where, CONFIG))["quantization_config"]) if is_compressed(where) else None

"""What a model directory weighs: bytes and bits per weight, in all, by part and by module. No torch here."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from abridged.checkpoint.files import (
    CONFIG,
    DTYPE_BYTES,
    TensorEntry,
    checked_directory,
    is_compressed,
    read_json,
    read_tensors,
    safe_file,
    weight_files,
)
from abridged.checkpoint.verify import verify
from abridged.storage.format import (
    FILE_NAMES,
    GUARDED,
    EmbeddingSpec,
    KroneckerSpec,
    LinearSpec,
    QuantizationSpec,
    parse_spec,
)

DENSE_BYTES = 4
"""Bytes of a weight before compression: FP32."""

_PARTS = (
    ("activation quantizers", re.compile(r"\.(input_quantizer|attention_quantizers)\.")),
    ("biases", re.compile(r"bias$")),
    ("norms", re.compile(r"(^|[._])(ln(_?\w+)?|norm\w*|layer_?norm\w*|\w*_norm)\.weight$", re.IGNORECASE)),
    ("positions", re.compile(r"(wpe|position_embeddings|embed_positions|position\w*)\.weight$")),
    ("pooler", re.compile(r"(pooler|predictions\.transform|lm_head|classifier)\.dense\b")),
    (
        "embedding",
        re.compile(r"(wte|embed_tokens|word_embeddings|token_type_embeddings|shared)\.weight(_scale|_zero_point)?$"),
    ),
    ("head", re.compile(r"(^|\.)(lm_head|cls|score|classifier|qa_outputs)\b")),
    ("attention", re.compile(r"(attn|attention)\b")),
    ("ffn", re.compile(r"(mlp|ffn|feed_forward|fc\d?|intermediate|output)\b")),
)
"""Parts by tensor name, first match first: names as transformers' families have them."""


def inspect(path: str | Path) -> dict[str, Any]:
    """`account`, and what was verified: ``verified`` lists what the digests of a checkpoint were found right for,
    "weights" and files beside them. None: an ordinary model, which has no digests.

    Raises :class:`AbridgedError` if it cannot be read as a model, or is not what its digests say.
    """
    directory = checked_directory(path)
    found = verify(directory) if is_compressed(directory) else None
    return account(directory) | {"verified": None if found is None else list(found.names)}


def account(path: str | Path) -> dict[str, Any]:
    """Account for the weights in a model directory, compressed by abridged or ordinary.

    Returns ``file_bytes`` (all weight files, headers included), ``dense_bytes`` (FP32: four for each parameter of the
    original, tied ones counted once, factored ones multiplied out), ``ratio`` = dense / file, ``bits_per_weight`` =
    8 * file / parameters, ``parameters``, ``stored_parameters`` (with factors counted as they are), ``format``
    ("abridged" or "dense"), ``files`` {name: bytes}, ``parts`` {name: {parameters, bytes, dense_bytes}} and
    ``modules``: one for each module with weights, {name, part, stored, shape, bits, bytes, dense_bytes}, for packed
    ones {code_book, packing, scales, num_scales, activations}, and for factored ones, whose bits are those of the left
    factor, {left, right, rank, error} (error: ‖W − ΣA⊗B‖ / ‖W‖ when training began, or None). Bytes by part and
    module are those of the tensors, so they sum to ``file_bytes`` less the headers ("headers" in parts). Of a model
    that was cut, parameters and dense bytes are those of the one before ("pruned away" in parts), so that ratios are
    honest.
    Raises :class:`AbridgedError` if the directory or a file in it cannot be read as a model.
    """
    directory = checked_directory(path)
    quantization = read_json(safe_file(directory, CONFIG)).get("quantization_config")
    spec = parse_spec(quantization) if quantization is not None else None
    paths = weight_files(directory)
    tensors = read_tensors(paths)
    files = {file.name: file.stat().st_size for file in paths}

    parts: dict[str, dict[str, int]] = {}
    modules: dict[str, dict[str, Any]] = {}
    packed, factored, wholes = (spec.matrices(), spec.factored(), spec.wholes()) if spec else ({}, {}, {})
    stored = 0
    for name, entry in sorted(tensors.items(), key=lambda item: _natural(item[0].removeprefix(GUARDED))):
        if spec and name == spec.guard:
            continue  # its place alone; what stands there comes under another name
        name = name.removeprefix(GUARDED)
        owner, attribute = _owner(name)
        matrix = packed.get(owner)
        parameters = _parameters(name, attribute, entry, matrix)
        stored += parameters
        if owner in wholes:  # a factor is listed under the module that it is a factor of
            whole = wholes[owner]
            is_left = name.endswith("left.weight")
            parameters = factored[whole].rows * factored[whole].columns // factored[whole].fused if is_left else 0
            name, owner = f"{whole}.{attribute}", whole
        part = part_of(name)
        row = parts.setdefault(part, {"parameters": 0, "bytes": 0, "dense_bytes": 0})
        if owner not in modules:
            modules[owner] = _describe(owner, entry, packed.get(_left(owner, factored), matrix), spec)
        module = modules[owner]
        for account in (row, module):
            account["parameters"] += parameters
            account["bytes"] += entry.num_bytes
            account["dense_bytes"] += parameters * DENSE_BYTES
    original = spec.shapes.parameters if spec and spec.shapes else None
    headers = sum(files.values()) - sum(entry.num_bytes for entry in tensors.values())
    parts["headers"] = {"parameters": 0, "bytes": headers, "dense_bytes": 0}

    file_bytes, count = sum(files.values()), sum(row["parameters"] for row in parts.values())
    if original is not None:  # what was pruned away weighed something before
        row = parts.setdefault("pruned away", {"parameters": 0, "bytes": 0, "dense_bytes": 0})
        row["parameters"] = max(0, original - count)
        row["dense_bytes"] = row["parameters"] * DENSE_BYTES
        count = max(count, original)
    return {
        "format": "abridged" if spec else "dense",
        "file_bytes": file_bytes,
        "dense_bytes": count * DENSE_BYTES,
        "ratio": count * DENSE_BYTES / file_bytes if file_bytes else 0.0,
        "bits_per_weight": 8 * file_bytes / count if count else 0.0,
        "parameters": count,
        "stored_parameters": stored,
        "files": files,
        "parts": parts,
        "modules": list(modules.values()),
    }


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to, by its name: embedding, attention, ffn, norms, … or other."""
    return next((part for part, pattern in _PARTS if pattern.search(name)), "other")


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _owner(name: str) -> tuple[str, str]:
    """The module that a tensor is listed under, and its name there; quantisers belong to what they quantise for."""
    for marker in (".input_quantizer.", ".attention_quantizers."):
        if marker in name:
            owner, _, rest = name.partition(marker)
            return owner, marker[1:] + rest
    owner, _, attribute = name.rpartition(".")
    return owner, attribute


def _parameters(name: str, attribute: str, entry: TensorEntry, matrix: LinearSpec | EmbeddingSpec | None) -> int:
    """Parameters of the original model that a tensor stands for: none for scales and quantisers."""
    if matrix is not None and attribute == "weight":
        return matrix.rows * matrix.columns
    if part_of(name) == "activation quantizers" or (matrix is not None and attribute in FILE_NAMES.values()):
        return 0
    return math.prod(entry.shape)


def _left(owner: str, factored: dict[str, KroneckerSpec]) -> str:
    """The path of a factored module's first left factor, which stands for all; of another module its own."""
    return f"{owner}.{next(iter(factored[owner].children()))}" if owner in factored else owner


def _describe(
    owner: str, entry: TensorEntry, matrix: LinearSpec | EmbeddingSpec | None, spec: QuantizationSpec | None
) -> dict[str, Any]:
    part = part_of(f"{owner}.weight")
    row: dict[str, Any] = {"name": owner, "part": part, "parameters": 0, "bytes": 0, "dense_bytes": 0}
    whole = spec.factored().get(owner) if spec else None
    if whole is not None:
        described = _describe_stored(owner, entry, matrix, spec)
        factors = whole.factors
        return {
            **row,
            **described,
            "shape": [factors.rows, factors.columns],
            "stored": f"{factors}; {described['stored']}",
            "left": list(factors.left),
            "right": list(factors.right),
            "rank": factors.rank,
            "error": whole.error,
        }
    return {**row, **_describe_stored(owner, entry, matrix, spec)}


def _describe_stored(
    owner: str, entry: TensorEntry, matrix: LinearSpec | EmbeddingSpec | None, spec: QuantizationSpec | None
) -> dict[str, Any]:
    if matrix is None:
        return {"stored": entry.dtype, "shape": list(entry.shape), "bits": 8 * DTYPE_BYTES[entry.dtype]}
    assert spec is not None
    readers = [path for path, source in spec.tied_modules().items() if source == owner]
    return {
        "stored": f"{matrix.code_book}, {matrix.bits:g} bits",
        "shape": [matrix.rows, matrix.columns],
        "bits": matrix.bits,
        "code_book": matrix.code_book,
        "packing": matrix.packing,
        "scales": matrix.granularity,
        "num_scales": matrix.num_scales,
        "scale_dtype": matrix.scale_dtype,
        "zero_points": matrix.storage.zero_bytes > 0,
        "tied": readers,
        "activations": matrix.input.model_dump(exclude_none=True)
        if isinstance(matrix, LinearSpec) and matrix.input
        else None,
    }

"""Export to a page that runs the model where it is read: llama.cpp as WebAssembly (wllama), and a GGUF file.

Why this engine: tokenizer and cache are part of it, and a classifier runs in it as well as what writes text; the
WebAssembly of onnxruntime is six times as large and has neither. Why this version: it is the last in 32 bits, faster
than those in 64, and a quarter of their size, and Safari runs it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import nn

from abridged import families
from abridged.core.atomic import written_whole
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name
from abridged.core.outputs import check_output
from abridged.exporters.gguf import export_gguf
from abridged.exporters.gguf_blocks import BLOCK_TYPES, BlockType
from abridged.exporters.web.npm import Package
from abridged.families.kinds import context_of, is_language_model, labels_texts
from abridged.models.load import load_any, load_tokenizer
from abridged.runtime.modules import PackedModule
from abridged.storage.code_books import CODE_BOOKS

WLLAMA = Package(
    "@wllama/wllama",
    "2.3.7",
    "sha512-T273gBEqEZCHAoyNZDg+X6boQWktaq+efNF6bJo5aHToJr7jS1kCYImKXDdBi2/CccRuBUcMBHHLHiQN4+OfKQ==",
)
#: The files of the package that a site has.
_SCRIPT, _LICENCE = "esm/index.min.js", "LICENCE"
_WASM = {"single": "esm/single-thread/wllama.wasm", "several": "esm/multi-thread/wllama.wasm"}
_PAGE = ("page.css", "page.js", "engine.js", "service-worker.js", "llama.cpp-LICENSE.txt")
#: Up to so many bytes in FP32, weights are in FP32, the fastest there, and one thread computes: several wait for each
#: other longer than they compute.
_IN_FULL = 32 * 2**20
_THREADS = 4
_CONTEXT = 2048  #: tokens at most: the memory for them grows with their number
_MOST = 2**31 - 1  #: bytes of a file that the engine reads
_LONGEST = 512  #: tokens of a text that is labelled: the engine reads no more at once


def _type_of(levels: tuple[int, ...]) -> BlockType:
    """The smallest type that holds integers, of those that the engine has vector code for."""
    bits = next(bits for bits in (4, 5, 8) if -(2 ** (bits - 1)) <= levels[0] and levels[-1] < 2 ** (bits - 1))
    return BLOCK_TYPES[f"int{bits}"]


_TYPES = {book: _type_of(CODE_BOOKS[book]) for book, kind in BLOCK_TYPES.items() if not kind.minima}


def export_web(
    directory: str | Path,
    output: str | Path,
    dense_fallback: bool = False,
    dtype: str | None = None,
    uniform: bool = False,
) -> dict[str, Any]:
    """Write a folder `output` whose index.html runs the model `directory` in a browser.

    What writes text goes on with one there, what labels texts labels one. The model is a GGUF file, gzipped as the
    engine is, so that a server needs to know nothing: a small one in FP32, another with its codes as they are in the
    types that are fast in WebAssembly (Q4_0 up to 4 bits, Q5_0, Q8_0; with zero points Q4_1, Q5_1). `dense_fallback`,
    `dtype` and `uniform` are those of `export_gguf`. The engine comes from npm once, and from the cache afterwards.

    Returns "file_bytes" of the folder, "types" of tensors, "scale_error", "dense" and "notes", as `export_gguf` does.
    Raises AbridgedError: a model that neither writes text nor labels it, or that llama.cpp does not run, each with what
    would run it; npm is needed and cannot give the engine; an output that exists or cannot be written.
    """
    target = check_output(output)
    model = load_any(directory)
    kind = _kind(directory, model)
    full = 4 * sum(matrix.rows * matrix.columns for matrix in families.view(model).matrices)
    threads = 1 if full <= _IN_FULL else _THREADS
    engine = WLLAMA.files([_LICENCE, _SCRIPT, *(_WASM[name] for name in _engines(threads))])
    site: dict[str, Any] = {"kind": kind, "threads": threads}
    site["context"] = min(context_of(model.config), _LONGEST if kind == "label" else _CONTEXT)
    if kind == "label":
        site |= _labels(directory, model)
        _add_scale(model)
    if dtype is None and full <= _IN_FULL:
        dtype = "float32"
    with written_whole(target) as folder:
        weights = folder / "model.gguf"
        try:
            account = export_gguf(
                directory,
                weights,
                dense_fallback=dense_fallback,
                dtype=dtype,
                uniform=uniform,
                model=model,
                instead=_TYPES,
            )
        except AbridgedError as error:
            raise AbridgedError(f"{error}{_others(error)}") from None
        site["bytes"] = weights.stat().st_size
        if site["bytes"] > _MOST:
            raise AbridgedError(
                f"{directory} takes {site['bytes'] / 2**30:.1f} GB as GGUF, and the page's engine reads less than 2: "
                "--format gguf writes it for llama.cpp outside of a browser"
            )
        site["model"] = _zipped(weights)
        for name in _engines(threads):
            (folder / f"wllama-{name}.wasm").write_bytes(engine[_WASM[name]])
            site[name] = _zipped(folder / f"wllama-{name}.wasm")
        site["sizes"] = {site[name]: (folder / site[name]).stat().st_size for name in ("model", *_engines(threads))}
        (folder / "wllama.js").write_bytes(engine[_SCRIPT])
        (folder / "wllama-LICENSE.txt").write_bytes(engine[_LICENCE])
        (folder / "index.html").write_text(_page(kind, site["context"], public_name(directory)), encoding="utf-8")
        (folder / "site.json").write_text(json.dumps(site, ensure_ascii=False), encoding="utf-8")
        for name in _PAGE:
            (folder / name).write_bytes((files("abridged.exporters.web") / name).read_bytes())
    account["file_bytes"] = sum(file.stat().st_size for file in target.iterdir())
    account["notes"] = [*account["notes"], f"to see it: python -m http.server --directory {output}"]
    return account


def _engines(threads: int) -> tuple[str, ...]:
    """The builds of the engine that a site has; that for one thread is for servers and browsers that give no more."""
    return ("single",) if threads == 1 else ("single", "several")


def _kind(directory: str | Path, model: Any) -> str:
    """What the page does with the model. Raises AbridgedError where there is nothing for it to do."""
    if is_language_model(model):
        return "write"
    if labels_texts(model):
        return "label"
    raise AbridgedError(
        f"the page goes on with a text or labels one, and {directory}, a {type(model).__name__}, does neither: "
        "--format gguf writes it for llama.cpp outside of a browser, and --format onnx for onnxruntime"
    )


def _others(error: AbridgedError) -> str:
    """What would run a model that the page's engine cannot; nothing where the error is another, or says it already."""
    said = any(word in str(error) for word in ("--", "pip install", "cannot write"))
    return "" if said else "; onnxruntime, which browsers run too, takes it: --format onnx"


def _labels(directory: str | Path, model: Any) -> dict[str, Any]:
    """A classifier's labels, what its outputs mean, and the tokens around a text."""
    config, tokenizer = model.config, load_tokenizer(directory, model)
    means = "score" if config.num_labels == 1 else "one"
    if config.problem_type == "multi_label_classification":
        means = "many"
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    return {"labels": names, "means": means, "ends": [tokenizer.cls_token_id, tokenizer.sep_token_id]}


def _add_scale(model: Any) -> None:
    """Give a classifier one more output, which is always 1, and zeros up to the model's width.

    The engine takes a text's outputs for its vector: it gives as many as the model is wide, divided by their length.
    Divided by the one that is known, they are what they were. What has no such head is left for export_gguf to refuse.
    """
    head, config = getattr(model, "classifier", None), model.config
    labels, width = config.num_labels, config.hidden_size
    if not isinstance(head, PackedModule | nn.Linear) or labels >= width:
        return
    padded = nn.Linear(width, width)
    weight: Any = head.weight
    bias: Any = head.bias
    with torch.no_grad():
        padded.weight.copy_(torch.zeros(width, width))
        padded.bias.copy_(torch.zeros(width))
        padded.weight[:labels] = weight
        padded.bias[labels] = 1.0
        if bias is not None:
            padded.bias[:labels] = bias
    model.classifier = padded
    config.id2label = {i: config.id2label.get(i, f"unused {i}") for i in range(width)}


def _zipped(file: Path) -> str:
    """Put a file, gzipped, in its place, with its digest in the name, so that a browser may keep it for good."""
    digest = hashlib.sha256()
    with file.open("rb") as plain:
        while part := plain.read(1 << 20):
            digest.update(part)
    named = file.with_name(f"{file.stem}.{digest.hexdigest()[:16]}{file.suffix}.gz")
    with file.open("rb") as plain, named.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as zipped:
        shutil.copyfileobj(plain, zipped)
    file.unlink()
    return named.name


def _page(kind: str, context: int, name: str) -> str:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = (files("abridged.exporters.web") / "index.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(kind=kind, context=context, name=name)

"""The model card: README.md of a checkpoint, written from the record of how it was made."""

from __future__ import annotations

import json
import re
from typing import Any

from abridged.storage.format import FORMAT_VERSION

MEGABYTE = 1 << 20
#: What the record says of data of that kind alone -> the class that loads the model, and what the hub calls its work.
_KINDS = {
    "columns": ("AutoModelForSeq2SeqLM", "summarization"),
    "labels": ("AutoModelForSequenceClassification", "text-classification"),
    "tags": ("AutoModelForTokenClassification", "token-classification"),
    "masked": ("AutoModelForMaskedLM", "fill-mask"),
    "train_questions": ("AutoModelForQuestionAnswering", "question-answering"),
    "pooling": ("AutoModel", "sentence-similarity"),
    "": ("AutoModelForCausalLM", "text-generation"),
}


def model_card(name: str, record: dict[str, Any]) -> str:
    """Markdown with the hub's YAML front matter.

    record: ``abridged.json``. Of it are used, where present, "teacher" and "data" (each a name, or an object with
    "name", "license" and "hub", whether that is where it is), "recipe" (a name, or an object with "name",
    "description" and "paper"), "metrics" (any object), "size" and "seed".
    """
    teacher, data, recipe = (_named(record.get(key)) for key in ("teacher", "data", "recipe"))
    size, quoted = record.get("size", {}), json.dumps(name, ensure_ascii=False)
    auto, tag = kind_of(data)
    lines = ["---", "library_name: transformers", f"pipeline_tag: {tag}", "tags: [abridged, quantized]"]
    for key, value in (("license", teacher.get("license")), ("base_model", _hub_name(teacher))):
        if value:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    if _hub_name(data):
        lines.append(f"datasets: [{json.dumps(data['name'], ensure_ascii=False)}]")
    lines += ["---", "", f"# {as_text(name)}", ""]
    source = f" from {_code(teacher['name'])}" if teacher.get("name") else ""
    lines.append(f"A language model compressed{source} with abridged.")
    if size:
        lines.append(
            f"Its weights take {size['file_bytes'] / MEGABYTE:.1f} MB on disk (MB = 2^20 bytes), "
            f"{size['ratio']:.1f} times less than the {size['dense_bytes'] / MEGABYTE:.1f} MB in FP32: "
            f"{size['bits_per_weight']:.2f} bits for each weight, everything counted."
        )
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import abridged  # pip install abridged; teaches transformers this format",
        *_loading(auto, tag, quoted),
        "```",
        "",
        "## How it was made",
        "",
        f"- Base model: {_told(teacher)}",
        f"- License: {as_text(teacher.get('license') or 'that of the base model')}",
        f"- Data: {_told(data)}",
        f"- Recipe: {_told(recipe)}",
    ]
    if record.get("seed") is not None:
        lines.append(f"- Seed: {record['seed']}")
    lines.append(f"- Format: abridged, version {FORMAT_VERSION}; all details are in `abridged.json`")
    if record.get("metrics"):
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {as_text(key)} | {as_text(value)} |" for key, value in _flat(record["metrics"])]
    if size.get("parts"):
        lines += ["", "## Bytes by part", "", "| part | FP32 | here |", "|---|---|---|"]
        lines += [f"| {part} | {row['dense_bytes']:,} | {row['bytes']:,} |" for part, row in size["parts"].items()]
    return "\n".join(lines) + "\n"


def _loading(auto: str, tag: str, quoted: str) -> list[str]:
    """The lines of Python that load a model."""
    if tag == "sentence-similarity":
        return [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'vectors = SentenceTransformer({quoted}).encode(["a sentence"])',
        ]
    return [
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"model = {auto}.from_pretrained({quoted})",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})",
    ]


def kind_of(data: dict[str, Any]) -> tuple[str, str]:
    """The class of transformers that loads a model trained on such data, and what the hub calls its work.

    data: as "data" stands in ``abridged.json``.
    """
    return next(kind for key, kind in _KINDS.items() if key in data or not key)


def _named(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    return {"name": str(value)} if value else {}


def _hub_name(what: dict[str, Any]) -> str | None:
    """The name if it is one on the hub: with an owner, or as the record says; a directory's says nothing to others."""
    name = what.get("name")
    looks = isinstance(name, str) and len(name) < 100 and re.fullmatch(r"[\w\-.]+/[\w\-.]+", name, re.ASCII)
    return str(name) if looks or what.get("hub") else None


def _told(what: dict[str, Any]) -> str:
    told = _code(what["name"]) if what.get("name") else "not recorded"
    extra = [as_text(what[key]) for key in ("description", "paper", "license", "sha256") if what.get(key)]
    return f"{told} ({'; '.join(extra)})" if extra else told


def as_text(value: Any) -> str:
    """As Markdown's text, in one line."""
    return re.sub(r"([\\`*\[\]<>#|~])", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> str:
    """As Markdown's code, in one line."""
    text = " ".join(str(value).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return [(path, text)]

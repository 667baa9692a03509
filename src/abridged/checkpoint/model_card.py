"""The model card: README.md of a checkpoint, written from the record of how it was made."""

from __future__ import annotations

import json
from typing import Any

from abridged.checkpoint.format import FORMAT_VERSION

MEGABYTE = 1 << 20
#: What the record says of data of that kind alone -> the class that loads the model, and what the hub calls its work.
_KINDS = {
    "columns": ("AutoModelForSeq2SeqLM", "summarization"),
    "labels": ("AutoModelForSequenceClassification", "text-classification"),
    "train_questions": ("AutoModelForQuestionAnswering", "question-answering"),
    "": ("AutoModelForCausalLM", "text-generation"),
}


def model_card(name: str, record: dict[str, Any]) -> str:
    """Markdown with the hub's YAML front matter.

    record: ``abridged.json``. Of it are used, where present, "teacher" and "data" (each a name, or an object with
    "name" and "license"), "recipe" (a name, or an object with "name", "description" and "paper"), "metrics" (any
    object), "size" and "seed".
    """
    teacher, data, recipe = (_named(record.get(key)) for key in ("teacher", "data", "recipe"))
    size = record.get("size", {})
    auto, tag = kind_of(data)
    lines = ["---", "library_name: transformers", f"pipeline_tag: {tag}", "tags: [abridged, quantized]"]
    for key, value in (("license", teacher.get("license")), ("base_model", _hub_name(teacher.get("name")))):
        if value:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    if _hub_name(data.get("name")):
        lines.append(f"datasets: [{json.dumps(data['name'], ensure_ascii=False)}]")
    lines += ["---", "", f"# {name}", ""]
    source = f" from `{teacher['name']}`" if teacher.get("name") else ""
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
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "```",
        "",
        "## How it was made",
        "",
        f"- Base model: {_told(teacher)}",
        f"- License: {teacher.get('license') or 'that of the base model'}",
        f"- Data: {_told(data)}",
        f"- Recipe: {_told(recipe)}",
    ]
    if record.get("seed") is not None:
        lines.append(f"- Seed: {record['seed']}")
    lines.append(f"- Format: abridged, version {FORMAT_VERSION}; all details are in `abridged.json`")
    if record.get("metrics"):
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in _flat(record["metrics"])]
    if size.get("parts"):
        lines += ["", "## Bytes by part", "", "| part | FP32 | here |", "|---|---|---|"]
        lines += [f"| {part} | {row['dense_bytes']:,} | {row['bytes']:,} |" for part, row in size["parts"].items()]
    return "\n".join(lines) + "\n"


def kind_of(data: dict[str, Any]) -> tuple[str, str]:
    """The class of transformers that loads a model trained on such data, and what the hub calls its work.

    data: as "data" stands in ``abridged.json``.
    """
    return next(kind for key, kind in _KINDS.items() if key in data or not key)


def _named(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    return {"name": str(value)} if value else {}


def _hub_name(name: Any) -> str | None:
    """The name if it looks like one on the hub; a path on somebody's disk says nothing to others."""
    is_hub_name = isinstance(name, str) and 0 < len(name) < 100 and name.count("/") <= 1 and name[0] not in "./~"
    return name if is_hub_name else None


def _told(what: dict[str, Any]) -> str:
    told = f"`{what['name']}`" if what.get("name") else "not recorded"
    extra = [str(what[key]) for key in ("description", "paper", "license", "sha256") if what.get(key)]
    return f"{told} ({'; '.join(extra)})" if extra else told


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return [(path, text.replace("|", "\\|"))]

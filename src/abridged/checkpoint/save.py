"""Writing a checkpoint: all of it, or nothing and one clear error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from abridged.checkpoint.files import (
    CONFIG,
    INDEX,
    RECORD,
    WEIGHTS,
    digest_file,
    settings_files,
    weight_files,
)
from abridged.checkpoint.inspect import account
from abridged.checkpoint.model_card import model_card
from abridged.checkpoint.pack import pack_model
from abridged.core.atomic import written_whole
from abridged.core.digest import file_sha256


def save_checkpoint(
    student: Any,
    directory: str | Path,
    tokenizer: Any | None,
    record: dict[str, Any],
    max_shard_size: int | str = "5GB",
) -> dict[str, Any]:
    """Write a compressed model as a stock Hugging Face directory, and return ``abridged.json`` as written.

    student: a trained student (see ``pack_model``) or a packed model. record: what ``abridged.json`` shall tell
    (recipe, teacher, data, seed, versions, metrics); its "size" (see ``inspect``) and "files" (bytes and SHA-256 of
    the weight files) are added here. ``README.md`` becomes the model card.
    Everything is written beside ``directory`` first. A new directory appears whole; in an existing one the files
    are replaced one by one, config.json last, other files stay.
    Raises :class:`AbridgedError` when the disk is full or the place cannot be written; nothing is left behind then.
    """
    model = student if hasattr(student, "hf_quantizer") else pack_model(student)
    with written_whole(directory, _place) as temporary:
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        quantization = model.hf_quantizer.quantization_config
        quantization.tokenizer = {
            name: digest_file(name, path) for name, path in settings_files(temporary, tokenizer=True).items()
        }
        try:
            model.save_pretrained(temporary, max_shard_size=max_shard_size)
        finally:
            quantization.tokenizer = {}
        size = account(temporary)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in weight_files(temporary)
        }
        record = {**record, "size": size, "files": files}
        (temporary / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (temporary / "README.md").write_text(model_card(Path(directory).name, record), encoding="utf-8")
    return record


def _place(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
        return
    # Without config.json the directory is no model: a crash while files of two checkpoints mix cannot be mistaken.
    (target / CONFIG).unlink(missing_ok=True)
    new = sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG)
    for stale in [*target.glob("model-*-of-*.safetensors"), target / WEIGHTS, target / INDEX]:
        if stale.name not in {path.name for path in new}:
            stale.unlink(missing_ok=True)
    for path in new:
        if (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        os.replace(path, target / path.name)

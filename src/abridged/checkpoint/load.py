"""Loading a checkpoint that may come from a stranger: every fault is one clear error before memory is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abridged.checkpoint.files import (
    CONFIG,
    RECORD,
    TensorEntry,
    check_digest,
    checked_directory,
    file_sha256,
    read_json,
    read_tensors,
    safe_file,
    weight_files,
)
from abridged.checkpoint.format import parse_spec
from abridged.errors import AbridgedError

_MAX_LABELS = 100_000
_MAX_LAYERS = 1_000


def load(directory: str | Path, **kwargs: Any) -> Any:
    """The model in a directory that abridged wrote, in evaluation mode, its weights packed in memory.

    kwargs: passed on to ``from_pretrained`` (``dtype``, ``device_map``, …). The model class is the one that
    config.json names, so a causal language model comes back as one.
    Raises :class:`AbridgedError` for anything that is not such a directory: missing, truncated, damaged or foreign
    files, tensors that do not fit the configuration, a newer format.
    """
    path = checked_directory(directory)
    verify(path)
    import transformers

    import abridged.checkpoint.hf  # noqa: F401  (registers the format)

    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        model_class: Any = getattr(transformers, (config.architectures or [""])[0], None)
        is_model = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
        if not is_model:
            raise AbridgedError(f"{path / CONFIG}: architectures names no model class of transformers")
        options = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        return model_class.from_pretrained(path, **{**kwargs, **options}).eval()
    except AbridgedError as error:
        raise AbridgedError(f"{path}: {error}") from error
    except Exception as error:  # transformers raises whatever a malformed config makes it stumble over
        reason = str(error).strip().split("\n")[0][:300]
        raise AbridgedError(f"{path} cannot be loaded: {reason or type(error).__name__}") from error


def verify(directory: Path) -> dict[str, TensorEntry]:
    """Check all files of a checkpoint without loading it, and return its tensors.

    Raises :class:`AbridgedError` for the first fault: names, sizes, hashes, and what ``quantization_config`` says.
    """
    config = read_json(safe_file(directory, CONFIG))
    try:
        spec = parse_spec(config.get("quantization_config"))
    except AbridgedError as error:
        raise AbridgedError(f"{directory / CONFIG}: {error}") from None
    files = weight_files(directory)
    tensors = read_tensors(files)
    _check_counts(config, len(tensors), directory)
    _check_hashes(directory, files)
    try:
        check_digest(tensors, spec)
    except AbridgedError as error:
        raise AbridgedError(f"{directory}: {error}") from None
    return tensors


def _check_counts(config: dict[str, Any], num_tensors: int, directory: Path) -> None:
    """Refuse counts for which transformers would build modules or tables without end before any tensor is looked at."""
    for key, value in config.items():
        if isinstance(value, dict) and key != "quantization_config":
            _check_counts(value, num_tensors, directory)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            limit = _MAX_LABELS if "label" in key else max(_MAX_LAYERS, num_tensors)
            if any(word in key for word in ("layer", "label", "expert", "block")) and value > limit:
                raise AbridgedError(f"{directory / CONFIG}: {key} is {value}, more than this model can have")


def _check_hashes(directory: Path, files: list[Path]) -> None:
    """Compare the weight files with the SHA-256 that abridged.json has for them, if it is there."""
    if not (directory / RECORD).exists() and not (directory / RECORD).is_symlink():
        return
    recorded = read_json(safe_file(directory, RECORD)).get("files", {})
    if not isinstance(recorded, dict):
        raise AbridgedError(f"{directory / RECORD}: files is not an object")
    for path in files:
        entry = recorded.get(path.name)
        expected = entry.get("sha256") if isinstance(entry, dict) else None
        if expected is not None and expected != file_sha256(path):
            raise AbridgedError(f"{path} does not match its sha256 in {RECORD}: it is damaged, or was changed since")

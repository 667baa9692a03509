"""Whether a checkpoint is what was written: counts, links, digests, tensors. No torch here, and no transformers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from abridged.checkpoint.files import (
    ADAPTER,
    CONFIG,
    GENERATION,
    RECORD,
    TensorEntry,
    check_file,
    content_digest,
    digest_check,
    read_json,
    read_tensors,
    safe_file,
    settings_files,
    weight_files,
)
from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.parallel import sharing
from abridged.storage.format import QUANT_METHOD, QuantizationSpec, parse_spec

#: What a config counts -> the most that is believed: modules or tables would be built without end before any tensor
#: is looked at, or beams kept.
_LIMITS = {
    re.compile(r"labels$"): 100_000,
    re.compile(r"(layers?|blocks?)$"): 1_000,
    re.compile(r"experts?$"): 4_096,
    re.compile(r"^num_(beams|beam_groups|return_sequences)$"): 256,
}
WEIGHTS_ALONE = "its digest covers the weights alone, not what config, generation config and tokenizer say"
_told: set[Path] = set()


@dataclass(frozen=True)
class Verified:
    """A checkpoint's tensors, and the names of what its digests were found right for: "weights", files beside them."""

    spec: QuantizationSpec
    tensors: dict[str, TensorEntry]
    names: tuple[str, ...]


def verify(directory: Path, files: list[Path] | None = None, spec: QuantizationSpec | None = None) -> Verified:
    """Check all files of a checkpoint without loading it. files: those with its weights, and spec: what its config
    says, if they are known.

    Raises :class:`AbridgedError` for the first fault: names, sizes, hashes, numbers that are not finite, what
    ``quantization_config`` says, and files that transformers would act on though no digest covers them.
    """
    try:
        config = read_json(safe_file(directory, CONFIG))
        spec = parse_spec(config.get("quantization_config")) if spec is None else spec
        check_counts(config)
        beside = check_settings(directory, spec)
        paths = weight_files(directory) if files is None else [safe_file(path.parent, path.name) for path in files]
        tensors = read_tensors(paths)
        with sharing(sum(entry.num_bytes for entry in tensors.values())) as start:
            for end in (_record_check(directory, paths, start), digest_check(tensors, spec, start)):
                end()
    except AbridgedError as error:
        text = str(error)
        raise AbridgedError(text if text.startswith(str(directory)) else f"{directory}: {text}") from None
    except RecursionError:
        raise AbridgedError(f"{directory}: its JSON is nested too deeply") from None
    return Verified(spec, tensors, ("weights", *beside))


def check_counts(data: Mapping[str, Any]) -> None:
    """Raise :class:`AbridgedError` for counts in a config that no model has, and for tokens that are no numbers."""
    for key, value in data.items():
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if key.endswith("_token_id") and not all(isinstance(one, int) for one in ids):
            raise AbridgedError(f"{key[:80]} is no token's number, nor a list of such")
        if isinstance(value, dict) and key != "quantization_config":
            check_counts(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            limit = next((most for pattern, most in _LIMITS.items() if pattern.search(key)), value)
            if not value <= limit:
                raise AbridgedError(f"{CONFIG}: {key[:80]} is {value:.6g}, more than any model has")


def check_config(data: Mapping[str, Any]) -> None:
    """What can be said of a config.json of ours alone, before anything is made of it.

    Raises :class:`AbridgedError` for counts that no model has, and for one that is not as it was written.
    """
    quantization = data.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") != QUANT_METHOD:
        return
    check_counts(data)
    files = quantization.get("files")
    recorded = files.get(CONFIG) if isinstance(files, dict) else None
    if isinstance(recorded, dict) and recorded.get("content") != content_digest(CONFIG, dict(data)):
        raise AbridgedError(f"{CONFIG} does not match its sha256 in quantization_config: it is damaged or was changed")


def check_settings(directory: Path, spec: QuantizationSpec) -> tuple[str, ...]:
    """Check what stands beside the weights, and return the names of what a digest was found right for.

    A tokenizer that is not there at all, or was not when the model was saved, is nobody's fault; nor is a file that
    the hub's cache has not fetched yet.
    """
    if (directory / ADAPTER).exists() or (directory / ADAPTER).is_symlink():
        raise AbridgedError(
            f"{ADAPTER}: transformers would apply an adapter that no digest covers; keep it in a directory of its own"
        )
    found = settings_files(directory)
    if GENERATION in found:
        check_counts(read_json(found[GENERATION]))
    if spec.version < 3:
        if directory not in _told:
            _told.add(directory)
            print(f"abridged: note: {directory} is of format version {spec.version}: {WEIGHTS_ALONE}", file=sys.stderr)
        return ()
    known = spec.files or {}
    if CONFIG not in known:
        raise AbridgedError("quantization_config: files lacks config.json, so its settings cannot be verified")
    ours = {CONFIG, GENERATION}
    fetched = directory.resolve().parent.name != "snapshots"
    with_tokenizer = bool(known.keys() - ours)
    if extra := sorted(found.keys() - known.keys() - (set() if with_tokenizer else found.keys() - ours)):
        raise AbridgedError(f"{extra[0]} is not of this checkpoint: no digest covers it")
    wanted = known.keys() if found.keys() - ours else known.keys() & ours
    if fetched and (missing := sorted(wanted - found.keys())):
        raise AbridgedError(f"{missing[0][:80]} is missing")
    checked = sorted(known.keys() & found.keys())
    for name in checked:
        check_file(name, found[name], known[name])
    return tuple(checked)


def _record_check(directory: Path, files: list[Path], start: Callable[..., Any]) -> Callable[[], None]:
    """Begin to compare the weight files with the SHA-256 that abridged.json has for them, if it is there; what is
    returned ends it. start: see `abridged.core.parallel.sharing`."""
    there = (directory / RECORD).exists() or (directory / RECORD).is_symlink()
    recorded = read_json(safe_file(directory, RECORD)).get("files", {}) if there else {}
    if not isinstance(recorded, dict):
        raise AbridgedError(f"{directory / RECORD}: files is not an object")
    entries = {path: entry for path in files if isinstance(entry := recorded.get(path.name), dict)}
    expected = {path: entry["sha256"] for path, entry in entries.items() if entry.get("sha256") is not None}
    found = {path: start(partial(file_sha256, path)) for path in expected}

    def check() -> None:
        for path, sha256 in found.items():
            if sha256() != expected[path]:
                raise AbridgedError(
                    f"{path} does not match its sha256 in {RECORD}: it is damaged, or was changed since"
                )

    return check

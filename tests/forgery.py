"""What a forger does to a checkpoint: changes it, and makes its digests fit."""

import json
from functools import partial

from safetensors.torch import load_file, save_file

from abridged.checkpoint.files import (
    CONFIG,
    RECORD,
    WEIGHTS,
    Content,
    content_sha256,
    digest_file,
    read_bytes,
    read_tensors,
    settings_files,
    weight_files,
)
from abridged.core.errors import AbridgedError
from abridged.storage.format import parse_spec


def edit(path, change) -> None:
    """Let `change` alter the JSON in a file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def sign(directory) -> None:
    """Make the digests fit what is there; abridged.json goes."""
    (directory / RECORD).unlink(missing_ok=True)
    if not (directory / CONFIG).exists():
        return
    config = json.loads((directory / CONFIG).read_text())
    try:
        described = config["quantization_config"]
        if described.get("version") in (3, 4, 5):
            found = settings_files(directory)
            described["files"] = {
                name: digest_file(name, path).model_dump(exclude_none=True) for name, path in found.items()
            }
        tensors = read_tensors(weight_files(directory))
        spec = parse_spec({**described, "sha256": "0" * 64})
    except (AbridgedError, KeyError, TypeError, AttributeError):
        return  # nothing that can be signed
    contents = {name: Content(one.dtype, one.shape, partial(read_bytes, one)) for name, one in tensors.items()}
    described["sha256"] = content_sha256(spec, contents, lambda work: work)()
    (directory / CONFIG).write_text(json.dumps(config))


def change_tensors(directory, change) -> None:
    """Let `change` alter the tensors, by name, and sign."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    sign(directory)


def change_config(directory, change) -> None:
    """Let `change` alter config.json, and sign."""
    edit(directory / CONFIG, change)
    sign(directory)


def as_version(directory, version: int) -> None:
    """Make of a checkpoint what an older abridged would have written."""

    def older(config):
        described = config["quantization_config"]
        described.pop("files")
        described["version"] = version
        if version == 1:
            described.pop("view", None)

    change_config(directory, older)

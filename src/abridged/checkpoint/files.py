"""The files of a model directory, read without trust and without torch: names, JSON, safetensors headers."""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abridged.checkpoint.format import QUANT_METHOD, ContentDigest, QuantizationSpec
from abridged.errors import AbridgedError

CONFIG = "config.json"
RECORD = "abridged.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes an element of the safetensors dtypes."""

_MAX_JSON = 64 << 20
_MAX_SHARDS = 10_000
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a safetensors file; ``begin`` and ``end`` are offsets from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def checked_directory(directory: str | Path) -> Path:
    """The directory as a path. Raises :class:`AbridgedError` unless it is one and holds a config.json."""
    path = Path(directory).expanduser()
    try:
        if not path.is_dir():
            raise AbridgedError(f"{path} is not a directory" if path.exists() else f"{path} does not exist")
    except (OSError, ValueError) as error:
        raise AbridgedError(f"cannot read {str(directory)!r}: {error}") from None
    if not (path / CONFIG).exists():
        raise AbridgedError(f"{path} holds no model: it has no {CONFIG}")
    return path


def safe_file(directory: Path, name: Any) -> Path:
    """The regular file ``name`` right in ``directory``.

    Raises :class:`AbridgedError` for a name with directories in it, a missing file, one that is no regular file, and
    a symbolic link that leads out of the directory. Links from a snapshot to the blobs of the same model in the hub's
    cache are the one exception: that is how the cache stores every file.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise AbridgedError(f"{directory}: {str(name)[:80]!r} is not a plain file name")
    path = directory / name
    try:
        if path.is_symlink():
            target, home = path.resolve(strict=True), directory.resolve(strict=True)
            blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
            if target.parent not in (home, blobs):
                raise AbridgedError(f"{path} is a symbolic link that leads out of the directory")
        if not stat.S_ISREG(path.stat().st_mode):
            raise AbridgedError(f"{path} is not a regular file")
    except FileNotFoundError:
        raise AbridgedError(f"{path} is missing") from None
    except (OSError, RuntimeError) as error:
        raise AbridgedError(f"cannot read {path}: {error}") from None
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises :class:`AbridgedError` for anything else, duplicate keys included."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise AbridgedError(f"{path} is too large ({path.stat().st_size} bytes)")
        return _parse_object(path.read_bytes(), path)
    except OSError as error:
        raise AbridgedError(f"cannot read {path}: {error.strerror or error}") from None


def _parse_object(text: bytes, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text.decode(), object_pairs_hook=_unique)
    except AbridgedError as error:
        raise AbridgedError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise AbridgedError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise AbridgedError(f"{path} is not a JSON object")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise AbridgedError("a key occurs twice in the same object")
    return data


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: the one, or the shards that the index names, in order of name."""
    if (directory / WEIGHTS).is_symlink() or (directory / WEIGHTS).exists():
        return [safe_file(directory, WEIGHTS)]
    if not (directory / INDEX).exists():
        raise AbridgedError(f"{directory} holds no weights: neither {WEIGHTS} nor {INDEX}")
    weight_map = read_json(safe_file(directory, INDEX)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise AbridgedError(f"{directory / INDEX} has no weight_map")
    names: set[str] = set()
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise AbridgedError(f"{directory / INDEX}: {str(name)[:80]!r} is not a safetensors file")
        names.add(name)
    if len(names) > _MAX_SHARDS:
        raise AbridgedError(f"{directory / INDEX} names {len(names)} files, more than any model has")
    return [safe_file(directory, name) for name in sorted(names)]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file.

    Raises :class:`AbridgedError` unless the tensors fill the file exactly: in bounds, without gap or overlap, each as
    many bytes as its dtype and shape say.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_JSON):
                raise AbridgedError(f"{path} is truncated or no safetensors file")
            header = _parse_object(file.read(length), path)
    except OSError as error:
        raise AbridgedError(f"cannot read {path}: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _entry(path, name, entry, start) for name, entry in header.items()}
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise AbridgedError(f"{path}: tensor {name[:80]!r} overlaps another or leaves a gap before it")
        position = tensor.end
    if position != size:
        raise AbridgedError(f"{path} is {size} bytes long, its tensors end at {position}: truncated or damaged")
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int) -> TensorEntry:
    where = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise AbridgedError(f"{where} has a malformed header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise AbridgedError(f"{where} is of unknown dtype {str(dtype)[:80]!r}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
            raise AbridgedError(f"{where} has a malformed shape or offsets")
    if len(offsets) != 2 or len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise AbridgedError(f"{where} has an absurd shape, or one that its bytes do not match")
    return TensorEntry(path, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def read_tensors(files: list[Path]) -> dict[str, TensorEntry]:
    """The tensors of all files together. Raises :class:`AbridgedError` if two files hold the same one."""
    tensors: dict[str, TensorEntry] = {}
    for path in files:
        for name, entry in read_header(path).items():
            if name in tensors:
                raise AbridgedError(f"{path}: tensor {name[:80]!r} is in {tensors[name].file.name} too")
            tensors[name] = entry
    return tensors


def read_bytes(entry: TensorEntry, chunk: int = 1 << 18) -> Iterator[bytes]:
    """A tensor's bytes, a part at a time: small enough that the allocator gives the memory back."""
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.begin)
            left = entry.num_bytes
            while left:
                data = file.read(min(chunk, left))
                if not data:
                    raise AbridgedError(f"{entry.file} ends within a tensor")
                left -= len(data)
                yield data
    except OSError as error:
        raise AbridgedError(f"cannot read {entry.file}: {error.strerror or error}") from None


def check_digest(tensors: dict[str, TensorEntry], spec: QuantizationSpec) -> None:
    """Raise :class:`AbridgedError` unless the tensors' content is what ``spec.sha256`` was computed from."""
    if spec.sha256 is None:
        raise AbridgedError("quantization_config: sha256 is missing, so the weights cannot be verified")
    digest = ContentDigest(spec)
    for name in sorted(tensors):
        digest.tensor(name, tensors[name].dtype, tensors[name].shape)
        for data in read_bytes(tensors[name]):
            digest.update(data)
    if digest.hexdigest() != spec.sha256:
        raise AbridgedError("the weights do not match their sha256 in quantization_config: the files are damaged")


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()


def is_compressed(directory: str | Path) -> bool:
    """Whether a local directory holds a checkpoint of this format (and not an ordinary model, or nothing)."""
    config = Path(directory).expanduser() / CONFIG
    if not config.is_file():
        return False
    quantization = read_json(config).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD

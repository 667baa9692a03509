"""The files of a model directory, read without trust and without torch: names, JSON, safetensors headers."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.names import nearest
from abridged.core.record import RECORD as RECORD
from abridged.storage.format import QUANT_METHOD, ContentDigest, FileDigest, QuantizationSpec

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"  # of peft: what transformers would apply
ADAPTER_WEIGHTS = "adapter.safetensors"  # ours, see `checkpoint.adapters`
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm",
    "target.spm", "bpe.codes", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"

REWRITTEN = {
    CONFIG: {"quantization_config", "transformers_version", "_name_or_path", "_commit_hash"},
    GENERATION: {"transformers_version"},
    "tokenizer.json": {"truncation", "padding"},  # of the last call before it was saved; each call sets its own
    "tokenizer_config.json": {"is_local", "local_files_only", "name_or_path", "transformers_version"},
}
"""The keys that a plain ``save_pretrained`` writes anew, which no digest of the file covers."""

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes an element of the safetensors dtypes."""
_EXPONENTS = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80 << 16),
    "F64": ("<u8", 0x7FF0 << 48),
}
"""The bits that are all set in what is not finite."""

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
            raise AbridgedError(
                f"{path} is not a directory" if path.exists() else f"{path} does not exist{nearest(path)}"
            )
    except (OSError, ValueError) as error:
        raise AbridgedError(f"cannot read {str(directory)!r}: {error}") from None
    if is_adapter(path):
        raise AbridgedError(
            f"{path} holds adapters alone: name their base, or make a packed model of both (abridged finetune --fold)"
        )
    if not (path / CONFIG).exists():
        raise AbridgedError(f"{path} holds no model: it has no {CONFIG}")
    return path


def is_adapter(directory: str | Path) -> bool:
    """Whether a local directory holds adapters beside a packed model (`checkpoint.adapters`), and no model."""
    return (Path(directory).expanduser() / ADAPTER_WEIGHTS).is_file()


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
    if header.pop("__metadata__", {"format": "pt"}).get("format") != "pt":
        raise AbridgedError(f"{path} is not of the format that torch's tensors are saved in")
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


def file_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """How long a safetensors file of these tensors is: dtype and shape of each, by name.

    It is 8 bytes, a header of compact JSON filled up to a multiple of 8, and the tensors, widest dtypes first.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    widest_first = [*DTYPE_BYTES][::-1]
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda one: (widest_first.index(one[1][0]), one[0])):
        begin, end = end, end + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    described = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-described // 8) * 8 + end


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


class Content(NamedTuple):
    """A tensor as a digest sees it; `read` gives its bytes, a part at a time."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[bytes | memoryview]]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for data in self.read():
            digest.update(data)
        return digest.hexdigest()


def content_sha256(
    spec: QuantizationSpec, contents: Mapping[str, Content], start: Callable[..., Any]
) -> Callable[[], str]:
    """Begin the `ContentDigest` of tensors by name; what is returned ends it. start: see `core.parallel.sharing`."""
    in_order = [(name, contents[name]) for name in sorted(contents)]
    of_one_piece = spec.version < 5
    begun = [] if of_one_piece else [start(content.sha256) for _, content in in_order]

    def end() -> str:
        digest = ContentDigest(spec)
        for (name, content), sha256 in zip(in_order, begun, strict=False):
            digest.tensor(name, content.dtype, content.shape, sha256())
        for name, content in in_order if of_one_piece else ():
            digest.tensor(name, content.dtype, content.shape)
            for data in content.read():
                digest.update(data)
        return digest.hexdigest()

    return end


def digest_check(
    tensors: dict[str, TensorEntry], spec: QuantizationSpec, start: Callable[..., Any]
) -> Callable[[], None]:
    """Begin to check tensors; what is returned raises :class:`AbridgedError` unless they are what ``spec.sha256`` was
    computed from, and finite. start: see `core.parallel.sharing`."""
    if spec.sha256 is None:
        raise AbridgedError("quantization_config: sha256 is missing, so the weights cannot be verified")
    bad: list[str] = []

    def read(name: str) -> Iterator[bytes]:
        for data in read_bytes(tensors[name]):
            yield data
            if not _is_finite(data, tensors[name].dtype):
                bad.append(name)

    contents = {name: Content(entry.dtype, entry.shape, partial(read, name)) for name, entry in tensors.items()}
    found = content_sha256(spec, contents, start)

    def end() -> None:
        if found() != spec.sha256:
            raise AbridgedError("the weights do not match their sha256 in quantization_config: the files are damaged")
        if bad:
            name = min(bad)
            raise AbridgedError(f"{name[:80]}: {'a scale' if name.endswith('scale') else 'a number'} is not finite")

    return end


def _is_finite(data: bytes, dtype: str) -> bool:
    if dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[dtype]
    return not bool(((np.frombuffer(data, kind) & exponent) == exponent).any())


def settings_files(directory: Path, tokenizer: bool = False) -> dict[str, Path]:
    """What transformers reads of a model directory beside weights, by name: config and generation config, tokenizer,
    chat templates. ``tokenizer``: no configs.

    Raises :class:`AbridgedError` for one that is a link out of the directory: its content would be handed on.
    """
    names = [*(() if tokenizer else (CONFIG, GENERATION)), *TOKENIZER_FILES]
    found = {name: safe_file(directory, name) for name in names if _is_there(directory / name)}
    templates = directory / _TEMPLATES
    if _is_there(templates):
        if templates.is_symlink() or not templates.is_dir():
            raise AbridgedError(f"{templates} is not a directory of its own")
        for path in sorted(templates.glob("*.jinja")):
            found[f"{_TEMPLATES}/{path.name}"] = safe_file(templates, path.name)
    return found


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer and chat templates of a model directory to another."""
    for name, path in settings_files(source, tokenizer=True).items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)


def write_json_files(directory: Path, files: Mapping[str, Any]) -> None:
    """Write JSON files by their path in a directory."""
    for name, value in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def content_digest(name: str, data: dict[str, Any]) -> str:
    """SHA-256 of what a JSON file of that name says: compact, keys sorted, without those in `REWRITTEN`."""
    said = {key: value for key, value in data.items() if key not in REWRITTEN.get(name, ())}
    try:
        return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    except RecursionError:
        raise AbridgedError(f"{name} is nested too deeply") from None


def digest_file(name: str, path: Path) -> FileDigest:
    """The digests of a settings file: of its content, where it is JSON, and of its bytes."""
    is_json = name in REWRITTEN
    return FileDigest(
        content=content_digest(name, read_json(path)) if is_json else None,
        bytes=None if name in (CONFIG, GENERATION) else file_sha256(path),
    )


def check_file(name: str, path: Path, expected: FileDigest) -> None:
    """Raise :class:`AbridgedError` unless a settings file is what its digest was made of."""
    if expected.bytes is not None and file_sha256(path) == expected.bytes:
        return
    if expected.content is None or content_digest(name, read_json(path)) != expected.content:
        raise AbridgedError(
            f"{name} does not match its sha256 in quantization_config: it is damaged or was changed (to change it on "
            "purpose, load the model and save it again beside the new file)"
        )


def is_compressed(directory: str | Path) -> bool:
    """Whether a local directory holds a checkpoint of this format (and not an ordinary model, or nothing)."""
    config = Path(directory).expanduser() / CONFIG
    if not config.is_file():
        return False
    quantization = read_json(config).get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD

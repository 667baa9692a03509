"""Keeps the index of a folder: what is new or changed is looked into, what is gone is dropped, what moved moves.

Each content is written in one transaction, so that a run that was killed is gone on with by the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing as closed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.core.progress import progress
from abridged.evaluation.vectors import KINDS, shortened
from abridged.index.embedder import Embedder, identify, open_embedder
from abridged.index.readers import READERS, Reader, reader_for
from abridged.index.store import Content, File, NoIndex, Store


@dataclass
class Summary:
    """What a run did: files by what became of them, `skipped` with its reason, and the `amount` that was looked
    into, in `unit`s: hours of video, or passages."""

    reads: str = ""  #: what the files are
    files: int = 0
    unchanged: int = 0
    added: int = 0  #: looked into
    known: int = 0  #: new names, or copies, of what was known
    gone: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    amount: float = 0.0
    unit: str = ""
    seconds: float = 0.0
    index: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(
    model: str | Path,
    folder: Path,
    file: Path | None = None,
    kind: str | None = None,
    dimensions: int | None = None,
    embedder: Callable[[str | Path], Embedder] = open_embedder,
) -> Summary:
    """Make the index of a folder, or bring it up to date: of its videos or of its texts, as the model has it.

    Args:
        model: a CLIP, or another model with vectors for pictures and texts, or a model of sentences; by name or
            directory.
        file: of the index; None = in the folder, by the name that a `Reader` says.
        kind: how vectors are stored, one of `KINDS`; None = as they are, or float16.
        dimensions: numbers of a vector that are kept, the first ones; None = as it is, or all.

    Raises:
        AbridgedError: no such folder or model; the index was made by another model, or stores vectors otherwise.
    """
    began = time.monotonic()
    folder = Path(resolve(folder))
    if not folder.is_dir():
        raise AbridgedError(f"there is no folder {folder}")
    if kind not in (None, *KINDS):
        raise AbridgedError(f"vectors are stored as one of {', '.join(KINDS)}, not as '{kind}'")
    opened: list[Embedder] = []

    def model_opened() -> Embedder:
        if not opened:
            opened.append(embedder(model))
        return opened[0]

    found = index_of(model, folder, file)
    if found is None:
        reader = reader_for(model_opened())
        file = file or folder / reader.index
    else:
        file, reader = found.file, found.reader
    with closed(_store(file, model, reader, kind, dimensions, model_opened)) as store:
        summary = Summary(reader.name, unit=reader.unit, index=str(file))
        known, faults = store.files(), store.faults()
        paths = list(files_under(folder, reader.suffixes))
        with progress("index", len(paths)) as update:
            for number, path in enumerate(paths, 1):
                name = path.relative_to(folder).as_posix()
                try:
                    _one(store, reader, path, name, known.get(name), faults, model_opened, summary)
                except OSError as error:
                    summary.skipped[name] = error.strerror or str(error)
                minutes = (time.monotonic() - began) / 60
                watched = {f"{reader.unit} a minute": summary.amount / minutes} if summary.amount else None
                update(number, watched=watched)
        present = {path.relative_to(folder).as_posix() for path in paths}
        gone = [name for name in known if name not in present]
        with store.together():
            store.forget(gone)
        summary.files, summary.gone = len(paths), len(gone)
    summary.seconds = time.monotonic() - began
    return summary


def files_under(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """The files in a folder and all below it whose names end so, in order, but for what is hidden; links to folders are
    not followed."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if path.suffix.lower() in suffixes and not name.startswith(".") and path.is_file():
                yield path


class Index(NamedTuple):
    """An index that a model made: its file, and what it reads."""

    file: Path
    reader: Reader


def index_of(model: str | Path, folder: Path, file: Path | None = None) -> Index | None:
    """The index of a folder that a model made; None where there is none yet.

    Args:
        file: of the index; None = one of those that a folder may have within it.

    Raises:
        AbridgedError: there is no such model; what is there is damaged, or another model made `file`.
    """
    files = [file] if file is not None else [folder / reader.index for reader in READERS.values()]
    had: dict[Path, dict[str, Any]] = {}
    reads: dict[Path, Reader] = {}
    for one in files:
        try:
            with closed(Store(one)) as store:
                had[one], reads[one] = _maker(store), _reader(store)
        except NoIndex:
            continue
    told = identify(model, had.values())
    found = next((one for one, maker in had.items() if maker["digest"] == told["digest"]), None)
    if found is None and file is not None and had:
        raise _made_by_another(file, had[file], told)
    return None if found is None else Index(found, reads[found])


def _store(
    file: Path, model: str | Path, reader: Reader, kind: str | None, dimensions: int | None,
    opened: Callable[[], Embedder],
) -> Store:  # fmt: skip
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AbridgedError(f"cannot write the index {file}: {error.strerror}") from error

    def settings() -> dict[str, Any]:
        width = opened().width
        if dimensions is not None and not 1 <= dimensions <= width:
            raise AbridgedError(f"vectors of {width:,} numbers cannot be cut to {dimensions:,}")
        told = {"width": dimensions or width, "kind": kind or KINDS[0], "model": identify(model)}
        return {**told, "reads": reader.name}

    store = Store(file, settings)
    if not store.fresh:
        had = _maker(store)
        told = identify(model, [had])
        if told["digest"] != had["digest"]:
            raise _made_by_another(file, had, told)
        if kind not in (None, store.kind):
            raise AbridgedError(f"{file} stores vectors as {store.kind}, not {kind}: delete it, or name another file")
        if dimensions not in (None, store.width):
            raise AbridgedError(
                f"{file} stores vectors of {store.width:,} numbers, not {dimensions:,}: delete it, or name another file"
            )
        if told != had:
            store.set(model=told)
    return store


def _maker(store: Store) -> dict[str, Any]:
    """What an index says of the model that made it, as `identify` told it."""
    had = store.settings.get("model")
    if not isinstance(had, dict) or not all(isinstance(had.get(key), str) for key in ("name", "digest")):
        raise AbridgedError(f"{store.file} does not say which model made it: delete it, or name another file")
    return had


def _reader(store: Store) -> Reader:
    """Who reads the files of an index."""
    reads = store.settings.get("reads", "videos")
    if not isinstance(reads, str) or reads not in READERS:
        raise AbridgedError(f"{store.file} does not say what is in it: delete it, or name another file")
    return READERS[reads]


def _made_by_another(file: Path, had: dict[str, Any], told: dict[str, Any]) -> AbridgedError:
    return AbridgedError(
        f"{file} was made by {had['name']} ({had['digest']}), whose vectors say nothing to {told['name']} "
        f"({told['digest']}): use that model, or make another index with --index FILE"
    )


def _one(
    store: Store, reader: Reader, path: Path, name: str, before: File | None, faults: dict[str, str],
    opened: Callable[[], Embedder], summary: Summary,
) -> None:  # fmt: skip
    """Bring the index up to date with one file."""
    stat = path.stat()
    if before is not None and (before.size, before.modified) == (stat.st_size, stat.st_mtime_ns):
        summary.unchanged += 1
        if before.digest in faults:
            summary.skipped[name] = faults[before.digest]
        return
    form = path.suffix.lower() if reader.by_ending else ""
    file = File(stat.st_size, stat.st_mtime_ns, file_sha256(path) + form)
    content: Content | str | None = None
    if not store.knows(file.digest):
        try:
            found = reader.look_into(path, opened())
            summary.added += 1
            summary.amount += reader.amount(found)
            content = replace(
                found, vectors=shortened(found.vectors, store.width), parts=shortened(found.parts, store.width)
            )
        except reader.fault as error:
            content = faults[file.digest] = str(error).removeprefix(f"{path}: ")
    elif file.digest not in faults:
        summary.known += 1
    with store.together():
        if content is not None:
            store.add(file.digest, content)
        store.see(name, file)
    if file.digest in faults:
        summary.skipped[name] = faults[file.digest]

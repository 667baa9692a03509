"""Keeps the index of a folder: what is new or changed is looked into, what is gone is dropped, what moved moves.

Each content is written in one transaction, so that a run that was killed is gone on with by the next one.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing as closed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.core.progress import progress
from abridged.data.video.decode import SUFFIXES, VideoError, duration, walk
from abridged.index.embedder import Embedder, Pools, identify, open_embedder
from abridged.index.moments import closing, remaining
from abridged.index.store import NAME, Content, File, Store
from abridged.index.vectors import KINDS

#: Seconds between frames, and of windows. An hour has 7,200 frames, and 4,700 windows.
EVERY = 0.5
SCALES = (2.0, 8.0, 32.0)
#: Frames that are looked at together where each stands for itself.
_TOGETHER = 16


@dataclass
class Summary:
    """What a run did: files by what became of them, `skipped` with its reason, and hours of video looked into."""

    files: int = 0
    unchanged: int = 0
    added: int = 0  #: looked into
    known: int = 0  #: new names, or copies, of what was known
    gone: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    hours: float = 0.0
    seconds: float = 0.0
    index: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(
    model: str | Path,
    folder: Path,
    file: Path | None = None,
    kind: str | None = None,
    embedder: Callable[[str | Path], Embedder] = open_embedder,
) -> Summary:
    """Make the index of a folder, or bring it up to date.

    Args:
        model: a CLIP, or another model with vectors for pictures and texts, by name or directory.
        file: of the index; None = `.abridged-index.sqlite` in the folder.
        kind: how vectors are stored, one of `KINDS`; None = as they are, or float16.

    Raises:
        AbridgedError: no such folder or model; the index was made by another model, or stores vectors otherwise.
    """
    began = time.monotonic()
    folder = Path(resolve(folder))
    if not folder.is_dir():
        raise AbridgedError(f"there is no folder {folder}")
    if kind not in (None, *KINDS):
        raise AbridgedError(f"vectors are stored as one of {', '.join(KINDS)}, not as '{kind}'")
    file = file or folder / NAME
    opened: list[Embedder] = []

    def model_opened() -> Embedder:
        if not opened:
            opened.append(embedder(model))
        return opened[0]

    with closed(_store(file, model, kind, model_opened)) as store:
        summary = Summary(index=str(file))
        known, faults = store.files(), store.faults()
        paths = list(files_under(folder))
        with progress("index", len(paths)) as update:
            for number, path in enumerate(paths, 1):
                name = path.relative_to(folder).as_posix()
                try:
                    _one(store, path, name, known.get(name), faults, model_opened, summary)
                except OSError as error:
                    summary.skipped[name] = error.strerror or str(error)
                minutes = (time.monotonic() - began) / 60
                update(number, watched={"hours of video a minute": summary.hours / minutes} if summary.hours else None)
        present = {path.relative_to(folder).as_posix() for path in paths}
        gone = [name for name in known if name not in present]
        with store.together():
            store.forget(gone)
        summary.files, summary.gone = len(paths), len(gone)
    summary.seconds = time.monotonic() - began
    return summary


def files_under(folder: Path) -> Iterator[Path]:
    """The videos in a folder and all below it, in order, but for what is hidden; links to folders are not followed."""
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path


def look_into(path: Path, embedder: Embedder, every: float = EVERY, scales: Sequence[float] = SCALES) -> Content:
    """The vectors of a video: of its frames, and of windows of several lengths.

    Raises:
        VideoError: it cannot be read.
    """
    lengths = [max(1, round(scale / every)) for scale in scales]
    pools = isinstance(embedder, Pools)
    held: deque[tuple[int, np.ndarray]] = deque(maxlen=_TOGETHER if pools else max(lengths))
    times: list[float] = []
    parts: dict[int, np.ndarray] = {}  # of frames, by number
    clips: dict[tuple[int, int], np.ndarray] = {}

    def window(start: int, stop: int) -> None:
        chosen = start + ((np.arange(n := min(embedder.frames, stop - start)) + 0.5) * (stop - start) / n).astype(int)
        frames = dict(held)
        vectors, clips[start, stop] = embedder.embed_frames(np.stack([frames[i] for i in chosen.tolist()]))
        for i, vector in zip(chosen.tolist(), vectors, strict=True):
            parts.setdefault(i, vector)

    for moment, frame in walk(path, every, embedder.side):
        held.append((len(times), frame))
        times.append(moment)
        if not pools:
            for span in closing(len(times), lengths):
                window(*span)
        elif len(held) == _TOGETHER:
            _each(embedder, held, parts)
    if pools:
        _each(embedder, held, parts)
    spans = [span for n in range(1, len(times) + 1) for span in closing(n, lengths)] if pools else list(clips)
    for span in remaining(len(times), lengths):
        spans.append(span)
        if not pools:
            window(*span)
    if isinstance(embedder, Pools):
        clips = {(a, b): embedder.pool(np.stack([parts[i] for i in range(a, b)])) for a, b in spans}
    ends = [*times[1:], min(times[-1] + every, duration(path))]
    return Content(
        length=ends[-1],
        spans=np.array([[times[start], ends[stop - 1]] for start, stop in spans]),
        vectors=np.stack([clips[span] for span in spans]),
        places=np.array([times[i] for i in sorted(parts)]),
        parts=np.stack([parts[i] for i in sorted(parts)]),
    )


def _each(embedder: Embedder, held: deque[tuple[int, np.ndarray]], parts: dict[int, np.ndarray]) -> None:
    if held:
        numbers, frames = zip(*held, strict=True)
        parts.update(zip(numbers, embedder.embed_frames(np.stack(frames))[0], strict=True))
        held.clear()


def _store(file: Path, model: str | Path, kind: str | None, opened: Callable[[], Embedder]) -> Store:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AbridgedError(f"cannot write the index {file}: {error.strerror}") from error
    store = Store(file, lambda: {"width": opened().width, "kind": kind or KINDS[0], "model": identify(model)})
    if not store.fresh:
        had = store.settings["model"]
        if kind not in (None, store.kind):
            raise AbridgedError(f"{file} stores vectors as {store.kind}, not {kind}: delete it, or name another file")
        if (told := check_model(file, had, model)) != had:
            store.set(model=told)
    return store


def check_model(file: Path, had: dict[str, Any], model: str | Path) -> dict[str, Any]:
    """What `identify` says of `model`.

    Raises:
        AbridgedError: an index was made by another one.
    """
    told = identify(model, had)
    if told["digest"] != had["digest"]:
        raise AbridgedError(
            f"{file} was made by {had['name']} ({had['digest']}), whose vectors say nothing to {told['name']} "
            f"({told['digest']}): use that model, or make another index with --index FILE"
        )
    return told


def _one(
    store: Store, path: Path, name: str, before: File | None, faults: dict[str, str],
    opened: Callable[[], Embedder], summary: Summary,
) -> None:  # fmt: skip
    """Bring the index up to date with one file."""
    stat = path.stat()
    if before is not None and (before.size, before.modified) == (stat.st_size, stat.st_mtime_ns):
        summary.unchanged += 1
        if before.digest in faults:
            summary.skipped[name] = faults[before.digest]
        return
    file = File(stat.st_size, stat.st_mtime_ns, file_sha256(path))
    content: Content | str | None = None
    if not store.knows(file.digest):
        try:
            content = look_into(path, opened())
            summary.added += 1
            summary.hours += content.length / 3600
        except VideoError as error:
            content = faults[file.digest] = str(error).removeprefix(f"{path}: ")
    elif file.digest not in faults:
        summary.known += 1
    with store.together():
        if content is not None:
            store.add(file.digest, content)
        store.see(name, file)
    if file.digest in faults:
        summary.skipped[name] = faults[file.digest]

"""What damaged videos, texts and indexes may come to: what is in them, or one sentence."""

from pathlib import Path
from typing import Any

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.data.video.decode import duration, frames, sample, walk
from abridged.index.moments import align
from abridged.index.passages import SUFFIXES, Document, TextError, passages, read_document
from abridged.index.store import Store
from bags import Bags


def check(path: Path) -> None:
    """Fails where a video, a text or an index ends otherwise."""
    (_index if path.suffix == ".sqlite" else _text if path.suffix in SUFFIXES else _video)(path)


def _text(path: Path) -> None:
    try:
        found = read_document(path)
    except TextError as error:
        said = str(error)
    else:
        return _cut(path, found)
    assert str(path) not in said
    assert "\n" not in said


def _cut(path: Path, found: Document) -> None:
    limit = 7
    spans = passages(found, Bags().count, limit)
    covered = set().union(*(range(*span) for span in spans))
    assert all(sign.isspace() or place in covered for place, sign in enumerate(found.text))
    assert all(end < after for (_, end), (_, after) in zip(spans, spans[1:], strict=False))  # none is within another
    lines = path.read_bytes().count(b"\n") + path.read_bytes().count(b"\r") + 1
    for start, end in spans:
        first, last = found.place(start, end)
        assert 1 <= first <= last <= lines
        text = found.text[start:end]
        assert text.strip() == text != ""
        assert len(text.split()) <= limit


def _video(path: Path) -> None:
    def some(count: int) -> np.ndarray:
        walked = [picture for (_, picture), _ in zip(walk(path, 0.5, 16), range(count), strict=False)]
        assert walked
        return np.stack(walked)

    for read in (some, lambda count: sample(path, count, side=16), lambda count: frames(path, [0.0] * count, side=16)):
        found = _told(read, path, 3)
        assert found is None or (found.dtype == np.uint8 and found.ndim == 4 and len(found) <= 3)
    assert np.isfinite(_told(duration, path, path) or 0)


def _told(read: Any, path: Path, given: Any) -> Any:
    """What `read` gives; None where it refuses in one sentence that names the file."""
    try:
        return read(given)
    except AbridgedError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said
    return None


def _index(path: Path) -> None:
    def some(path: Path) -> None:
        store = Store(path)
        windows = store.windows()
        scores = windows.matrix.scores(np.ones(store.width, np.float32))
        assert len(scores) == len(windows.spans) == len(windows.contents)
        for content in store.paths():
            places, parts = store.parts(content)
            align(parts[:, :2].T, 2, 4)
            assert len(places) == len(parts)
        store.files(), store.faults()

    _told(some, path, path)

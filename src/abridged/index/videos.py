"""Looks into a video: vectors of its frames, and of windows of several lengths."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from abridged.data.video.decode import duration, walk
from abridged.index.embedder import Pools, SeesVideos
from abridged.index.moments import closing, remaining
from abridged.index.store import Content

#: Seconds between frames, and of windows. An hour has 7,200 frames, and 4,700 windows.
EVERY = 0.5
SCALES = (2.0, 8.0, 32.0)
#: Frames that are looked at together where each stands for itself.
_TOGETHER = 16


def look_into(path: Path, embedder: SeesVideos, every: float = EVERY, scales: Sequence[float] = SCALES) -> Content:
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


def _each(embedder: SeesVideos, held: deque[tuple[int, np.ndarray]], parts: dict[int, np.ndarray]) -> None:
    if held:
        numbers, frames = zip(*held, strict=True)
        parts.update(zip(numbers, embedder.embed_frames(np.stack(frames))[0], strict=True))
        held.clear()

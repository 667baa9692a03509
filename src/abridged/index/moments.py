"""From windows of a video to moments in it: how windows are laid, hits merged, and events in order found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

#: A neighbour joins a hit where it stands out from all windows at least this much of what the hit's best does; and a
#: frame is of a hit where it does so of what the hit's best frame does.
_JOINS, _BELONGS = 0.75, 0.6


def closing(frames: int, scales: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Windows (from, to), in frames, that end where `frames` were seen: of each scale one every half of it."""
    for scale in scales:
        if frames >= scale and (frames - scale) % max(1, scale // 2) == 0:
            yield frames - scale, frames


def remaining(frames: int, scales: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The windows that `closing` left out of a video of so many frames: one up to its end for each scale, and one over
    all of it for the first scale that is longer."""
    for scale in sorted(scales):
        if frames < scale:
            yield 0, frames
            return
        if (frames - scale) % max(1, scale // 2):
            yield frames - scale, frames
        if frames == scale:
            return


def merge(spans: np.ndarray, scores: np.ndarray, usual: float) -> list[tuple[float, float, float]]:
    """Moments in one file, the best first.

    The best window that is in no moment yet begins one. Neighbours that are no longer than it, touch it, and stand out
    nearly as much from the `usual` score extend it; what else overlaps it is the same moment told worse.

    Args:
        spans: (n, 2), from and to, of windows that were hit.
        scores: (n,).

    Returns:
        (from, to, score of the best window) of each.
    """
    left = list(np.argsort(-scores, kind="stable"))
    found = []
    while left:
        best = left.pop(0)
        start, end = spans[best]
        longest = (end - start) * 1.01
        enough = usual + _JOINS * (scores[best] - usual)
        grown = True
        while grown:
            near = [i for i in left if spans[i][0] <= end and spans[i][1] >= start]
            joins = [i for i in near if spans[i][1] - spans[i][0] <= longest and scores[i] >= enough]
            grown = any(spans[i][0] < start or spans[i][1] > end for i in joins)
            start = min([start, *(spans[i][0] for i in joins)])
            end = max([end, *(spans[i][1] for i in joins)])
            left = [i for i in left if i not in joins]
        left = [i for i in left if spans[i][0] >= end or spans[i][1] <= start]
        found.append((float(start), float(end), float(scores[best])))
    return found


def apart(spans: np.ndarray, scores: np.ndarray, usual: float) -> list[tuple[float, float, float]]:
    """Windows in one file that do not overlap, the best first, as they are; otherwise as `merge`."""
    found: list[tuple[float, float, float]] = []
    for i in np.argsort(-scores, kind="stable"):
        start, end = map(float, spans[i])
        if all(end <= before or start >= after for before, after, _ in found):
            found.append((start, end, float(scores[i])))
    return found


def tighten(scores: np.ndarray, usual: float) -> tuple[int, int]:
    """The run of frames that a hit is: the one in which most stand out, most, from the `usual` score.

    Args:
        scores: (frames,) of those within the hit.

    Returns:
        Its first frame, and the one after its last; all where none stands out.
    """
    gains = np.cumsum([0.0, *(scores - usual - _BELONGS * (scores.max() - usual))])
    before = np.minimum.accumulate(gains)  # the run of the largest sum ends where most was gained since the least
    stop = int((gains - before).argmax())
    start = int(gains[: stop + 1].argmin())
    return (start, stop) if start < stop else (0, len(scores))


def align(scores: np.ndarray, length: int, apart: int) -> tuple[float, list[int]]:
    """Where events follow each other best: a monotonic alignment by dynamic programming over frame scores.

    Each event takes `length` frames in a row, whose scores are averaged; the next begins after it, at most `apart`
    frames later.

    Args:
        scores: (events, frames).

    Returns:
        The mean over the events, and the first frame of each; minus infinity where they do not fit.
    """
    events, frames = scores.shape
    length = max(1, min(length, frames // events))
    places = frames - length + 1
    if frames < events:
        return -np.inf, []
    sums = np.cumsum(np.pad(scores.astype(np.float64), ((0, 0), (1, 0))), axis=1)
    means = (sums[:, length:] - sums[:, :-length]) / length  # of an event that begins at each place
    best = means[0]
    came: list[np.ndarray] = []
    for event in range(1, events):
        # The one before began between `length` and `length + apart` frames earlier.
        window = np.full((apart + 1, places), -np.inf)
        for later in range(apart + 1):
            shift = length + later
            if shift < places:
                window[later, shift:] = best[: places - shift]
        chosen = window.argmax(axis=0)
        came.append(np.arange(places) - length - chosen)
        best = window[chosen, np.arange(places)] + means[event]
    place = int(best.argmax())
    if not np.isfinite(best[place]):
        return -np.inf, []
    total, starts = float(best[place]) / events, [place]
    for back in reversed(came):
        starts.insert(0, int(back[starts[0]]))
    return total, starts

"""How well texts find videos and videos texts, and whether order, direction and moments are told; all by cosines."""

from __future__ import annotations

import numpy as np

from abridged.core.measurement import Measured, Measurement

#: Recall is measured among the best so many.
AMONG = (1, 5, 10)


def ranks(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(Q,) the rank of each query's best relevant one, from 1; what is as alike and not relevant goes first.

    Args:
        similarity: (Q, N).
        relevant: (Q, N) bool; a query without any is left out.
    """
    rows = relevant.any(1)
    similarity, relevant = similarity[rows], relevant[rows]
    best = np.where(relevant, similarity, -np.inf).max(1, keepdims=True)
    found: np.ndarray = 1 + ((similarity >= best) & ~relevant).sum(1)
    return found


def retrieval(similarity: np.ndarray, relevant: np.ndarray, prefix: str = "", told: bool = True) -> Measured:
    """Recall at 1, 5 and 10, median and mean rank, of texts (T, V) for videos and of videos for texts.

    Args:
        prefix: of the names, where something else is measured so, too.
        told: whether recall at 1 is what to watch.
    """
    measurements = []
    ways = (("", "", similarity, relevant), ("video_", " of texts", similarity.T, relevant.T))
    for way, of, scores, right in ways:
        found = ranks(scores, right)
        for k in AMONG:
            headline = told and not way and k == 1
            value = 100 * float((found <= k).mean())
            name = f"{prefix}{way}recall_at_{k}"
            title = f"R@{k}{of}{', matched' if prefix else ''}"
            measurements.append(Measurement(name, value, title, headline=headline))
        for name, value in (("median", float(np.median(found))), ("mean", float(found.mean()))):
            title = f"{name} rank{of}{', matched' if prefix else ''}"
            measurements.append(Measurement(f"{prefix}{way}{name}_rank", value, title, "", "lower"))
    return Measured(measurements)


def preferred(true: np.ndarray, false: np.ndarray) -> float:
    """Per cent of (n,) pairs whose true one scores more; equal ones count half, so that chance is 50."""
    return 100 * float(np.mean((true > false) + 0.5 * (true == false)))


def best_window(scores: np.ndarray, smooth: int = 3) -> tuple[int, int]:
    """First and last + 1 of the run of frames that stands out most of (n,) scores.

    Scores are smoothed by a running mean; a run's worth is the sum of what its scores are above the middle between the
    least and the largest (the largest sum of neighbours, Bentley 1984).
    """
    width = min(smooth, len(scores)) // 2
    padded = np.pad(scores.astype(np.float64), width, mode="edge")
    smoothed = np.convolve(padded, np.ones(2 * width + 1) / (2 * width + 1), mode="valid")
    above = smoothed - (smoothed.min() + smoothed.max()) / 2
    sums = np.concatenate([[0.0], np.cumsum(above)])
    gains = sums[None, 1:] - sums[:-1, None]  # (first, last + 1 - 1)
    gains[np.tril_indices(len(scores), -1)] = -np.inf
    first, last = np.unravel_index(int(gains.argmax()), gains.shape)
    return int(first), int(last) + 1


def stretches(count: int, least: int) -> list[tuple[int, int]]:
    """First and last + 1 of runs of `count` frames: of `least` and of more, each length half as long again as the one
    before, a quarter of it apart."""
    found, length = [], least
    while length <= count:
        found += [(start, start + length) for start in range(0, count - length + 1, max(1, length // 4))]
        length = max(length + 1, length * 3 // 2)
    return found or [(0, count)]


def stands_out(scores: np.ndarray, start: int, stop: int) -> float:
    """By how much (n,) frames' scores from start to stop are above those beside them, half as many on either side."""
    beside = max(2, (stop - start) // 2)
    others = np.concatenate([scores[max(0, start - beside) : start], scores[stop : stop + beside]])
    return float(scores[start:stop].mean() - (others.mean() if len(others) else scores.mean()))


def overlap(found: tuple[float, float], true: tuple[float, float]) -> float:
    """Intersection over union of two stretches of time."""
    both = max(0.0, min(found[1], true[1]) - max(found[0], true[0]))
    either = found[1] - found[0] + true[1] - true[0] - both
    return both / either if either > 0 else 0.0


def aligned(first: np.ndarray, second: np.ndarray) -> float:
    """How well frames tell two events in order, without any training: the best cut of the (n,) frames' scores.

    The mean of the first event's before the cut and of the second's behind it, averaged: a monotonic alignment by
    dynamic programming, of two events.
    """
    if len(first) < 2:
        return float((first.mean() + second.mean()) / 2)
    before = np.cumsum(first)[:-1] / np.arange(1, len(first))
    behind = (np.cumsum(second[::-1])[::-1])[1:] / np.arange(len(second) - 1, 0, -1)
    return float((before + behind).max() / 2)

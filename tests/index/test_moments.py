"""How windows are laid, hits merged, and events found in order."""

import itertools

import numpy as np
import pytest

from abridged.index.moments import align, apart, closing, merge, remaining, tighten


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9, 16, 17, 40])
def test_windows_cover_a_video_to_its_end(frames):
    scales = [4, 16]
    windows = [span for seen in range(1, frames + 1) for span in closing(seen, scales)]
    windows += remaining(frames, scales)
    assert len(set(windows)) == len(windows)
    assert {i for a, b in windows for i in range(a, b)} == set(range(frames))
    lengths = {b - a for a, b in windows}
    assert lengths == {length for length in (4, 16) if length <= frames} | (
        {frames} if frames not in (4, 16) and frames < 16 else set()
    )
    for length in (4, 16):
        if frames >= length:
            assert max(b for a, b in windows if b - a == length) == frames


def test_neighbours_that_stand_out_join_and_longer_windows_do_not():
    spans = np.array([[0, 2], [1, 3], [2, 4], [3, 5], [10, 12], [0, 16]], float)
    scores = np.array([0.50, 0.90, 1.00, 0.86, 0.70, 0.80])
    assert merge(spans, scores, usual=0.4) == [(1.0, 5.0, 1.0), (10.0, 12.0, 0.7)]
    assert merge(spans, scores, usual=0.84)[0] == (2.0, 4.0, 1.0)
    assert merge(spans[5:], scores[5:], usual=0.1) == [(0.0, 16.0, 0.8)]
    assert merge(spans[:0], scores[:0], usual=0.1) == []


def test_what_joins_may_bring_in_its_own_neighbours():
    spans = np.array([[i, i + 2] for i in range(6)], float)
    assert merge(spans, np.array([0.8, 0.9, 1.0, 0.9, 0.9, 0.1]), usual=0.0) == [(0.0, 6.0, 1.0)]


def test_a_hit_is_the_frames_that_stand_out():
    assert tighten(np.array([0.2, 0.3, 0.9, 1.0, 0.7, 0.9, 0.2]), usual=0.2) == (2, 6)
    assert tighten(np.array([0.9, 0.9, 0.2, 0.2, 1.0]), usual=0.2) == (0, 2)
    assert tighten(np.array([0.8, 0.8, 0.8]), usual=0.2) == (0, 3)
    assert tighten(np.array([0.1, 0.1]), usual=0.5) == (0, 2)


@pytest.mark.parametrize(("length", "apart"), [(1, 9), (2, 9), (2, 1), (1, 0)])
@pytest.mark.parametrize("events", [1, 2, 3])
def test_the_best_order_is_that_of_trying_all(events, length, apart):
    scores = np.random.default_rng(events).normal(size=(events, 9))

    def total(starts):
        steps = np.diff(starts)
        if (steps < length).any() or (steps > length + apart).any():
            return -np.inf
        return np.mean([scores[k, s : s + length].mean() for k, s in enumerate(starts)])

    best = max(itertools.product(range(9 - length + 1), repeat=events), key=total)
    score, starts = align(scores, length, apart)
    assert starts == list(best)
    assert score == pytest.approx(total(best))


def test_events_that_do_not_fit_are_not_found():
    assert align(np.zeros((3, 2)), 1, 5) == (-np.inf, [])
    assert align(np.zeros((2, 2)), 4, 5)[1] == [0, 1]


def test_windows_apart_are_the_best_that_do_not_overlap():
    spans = np.array([[0, 10], [8, 20], [18, 30], [30, 40], [5, 6]], float)
    assert apart(spans, np.array([0.5, 0.9, 0.6, 0.4, 0.8]), 0.0) == [(8, 20, 0.9), (5, 6, 0.8), (30, 40, 0.4)]
    assert apart(spans, np.array([0.9, 0.5, 0.8, 0.1, 0.2]), 0.0) == [(0, 10, 0.9), (18, 30, 0.8), (30, 40, 0.1)]

"""Retrieval against plain loops, and moments against all that there are."""

import numpy as np
import pytest

from abridged.evaluation.retrieval import (
    aligned,
    best_window,
    overlap,
    preferred,
    ranks,
    retrieval,
    stands_out,
    stretches,
)


def test_ranks_are_those_of_a_plain_loop():
    draw = np.random.default_rng(0)
    similarity = draw.integers(0, 5, (6, 9)) / 4
    relevant = draw.random((6, 9)) < 0.3
    relevant[2] = False
    wanted = []
    for scores, right in zip(similarity, relevant, strict=True):
        if right.any():
            best = max(scores[right])
            wanted.append(1 + sum(s >= best for s, r in zip(scores, right, strict=True) if not r))
    assert ranks(similarity, relevant).tolist() == wanted


def test_recall_and_ranks_both_ways():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1]])
    relevant = np.array([[True, False, False], [False, True, True]])
    found = retrieval(similarity, relevant)
    assert (found["recall_at_1"], found["recall_at_5"]) == (50.0, 100.0)
    assert (found["median_rank"], found["mean_rank"]) == (1.5, 1.5)
    assert found["video_recall_at_1"] == pytest.approx(200 / 3)
    assert found.headline.name == "recall_at_1"
    assert not any(m.headline for m in retrieval(similarity, relevant, "matched_", told=False).measurements)


def test_equal_scores_are_no_preference():
    assert preferred(np.array([1.0, 0.0, 2.0, 2.0]), np.array([0.0, 1.0, 2.0, 1.0])) == 62.5
    assert preferred(np.zeros(7), np.zeros(7)) == 50.0


def test_the_window_that_stands_out():
    scores = np.zeros(20)
    scores[6:11] = 1.0
    assert best_window(scores) == (6, 11)
    assert best_window(scores, smooth=1) == (6, 11)
    noisy = scores + np.random.default_rng(0).normal(0, 0.05, 20)
    assert best_window(noisy) == (6, 11)
    assert best_window(np.ones(1)) == (0, 1)


def test_overlap():
    assert overlap((0, 4), (2, 6)) == pytest.approx(1 / 3)
    assert overlap((0, 1), (2, 3)) == 0.0
    assert overlap((1, 3), (1, 3)) == 1.0


def test_alignment_is_the_best_of_all_cuts():
    draw = np.random.default_rng(0)
    first, second = draw.random((2, 9))
    wanted = max((first[:cut].mean() + second[cut:].mean()) / 2 for cut in range(1, 9))
    assert aligned(first, second) == pytest.approx(wanted)
    rise = np.linspace(0, 1, 8)
    assert aligned(1 - rise, rise) > aligned(rise, 1 - rise)


def test_frames_stand_out_from_those_beside_them():
    scores = np.array([0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 3.0, 1.0, 0.0])
    assert stands_out(scores, 3, 7) == pytest.approx(3 - 0.5)
    assert stands_out(scores, 0, 9) == 0.0
    assert stands_out(scores, 7, 9) == pytest.approx(0.5 - 3.0)


def test_stretches_are_of_all_lengths_and_overlap():
    found = stretches(16, 4)
    assert {stop - start for start, stop in found} == {4, 6, 9, 13}
    assert [start for start, stop in found if stop - start == 4] == list(range(13))
    assert [start for start, stop in found if stop - start == 9] == [0, 2, 4, 6]
    assert stretches(3, 4) == [(0, 3)]

"""The metrics of GLUE, worked out by hand and against their definitions."""

import numpy as np
import pytest

from abridged.evaluation.scores import METRICS, accuracy, f1, matthews, pearson, score, spearman

TRUE, GUESS = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])


def test_by_hand():
    # 3 true positives, 1 false positive, 1 false negative, 3 true negatives
    assert accuracy(GUESS, TRUE) == 75.0
    assert f1(GUESS, TRUE) == pytest.approx(100 * 6 / 8)
    assert matthews(GUESS, TRUE) == pytest.approx(100 * (3 * 3 - 1 * 1) / np.sqrt(4 * 4 * 4 * 4))


def test_correlations():
    generator = np.random.default_rng(0)
    x = generator.normal(size=200).astype(np.float32)
    y = (x + generator.normal(size=200)).astype(np.float32)
    assert pearson(x, y) == pytest.approx(100 * np.corrcoef(x, y)[0, 1], rel=1e-5)
    assert spearman(x, np.exp(3 * x)) == pytest.approx(100.0)
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(
        100 * np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    )


def test_more_than_two_labels():
    true, guess = np.array([0, 1, 2, 2, 1, 0]), np.array([0, 2, 2, 2, 1, 1])
    onehot = [np.eye(3)[x] - np.eye(3)[x].mean(0) for x in (true, guess)]
    cov = [(a * b).sum() for a, b in ((onehot[0], onehot[1]), (onehot[0], onehot[0]), (onehot[1], onehot[1]))]
    assert matthews(guess, true) == pytest.approx(100 * cov[0] / np.sqrt(cov[1] * cov[2]))


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
def test_what_is_constant_tells_nothing(name):
    zeros = np.zeros(5, dtype=np.int64)
    assert METRICS[name](zeros, zeros) == 0.0
    assert METRICS[name](zeros, np.array([0, 1, 0, 1, 0])) == 0.0


def test_each_metric_is_called_as_the_field_calls_it():
    found = score(tuple(METRICS), GUESS, TRUE).measurements
    titles = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman"}
    assert {m.name: m.title for m in found} == {**titles, "score": ""}
    assert [m.name for m in found if m.headline] == ["score"]
    assert {m.better for m in found} == {"higher"}


def test_the_score_is_the_mean():
    found = score(("accuracy", "f1"), GUESS, TRUE)
    assert found["score"] == (found["accuracy"] + found["f1"]) / 2

"""The metrics of classification and of scores, by name, as GLUE counts them; all in per cent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from abridged.core.measurement import Measured, Measurement


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of (n,) labels that are right."""
    return 100 * float(np.mean(predicted == true))


def f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """F1 of label 1 among (n,) labels 0 and 1; 0 where it is neither predicted nor true."""
    both = int(np.sum((predicted == 1) & (true == 1)))
    either = int(np.sum(predicted == 1) + np.sum(true == 1))
    return 200 * both / either if either else 0.0


def matthews(predicted: np.ndarray, true: np.ndarray) -> float:
    """Matthews' correlation of (n,) labels, of two or more kinds (Gorodkin 2004); 0 where one side is constant."""
    count = int(max(predicted.max(), true.max())) + 1
    table = np.zeros((count, count))
    np.add.at(table, (true, predicted), 1)
    right, total = np.trace(table), table.sum()
    trues, guesses = table.sum(1), table.sum(0)
    spread = (total**2 - guesses @ guesses) * (total**2 - trues @ trues)
    return 100 * float((right * total - trues @ guesses) / np.sqrt(spread)) if spread else 0.0


def pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Linear correlation of (n,) numbers; 0 where one side is constant."""
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return 100 * float(np.corrcoef(predicted.astype(np.float64), true.astype(np.float64))[0, 1])


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Correlation of ranks, equal numbers sharing the mean of theirs."""
    return pearson(_ranks(predicted), _ranks(true))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
_TITLES = {"f1": "F1", "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman"}


def score(metrics: tuple[str, ...], predicted: np.ndarray, true: np.ndarray) -> Measured:
    """Each metric by name, and `score`, their mean, which GLUE's average is made of."""
    found = [Measurement(name, METRICS[name](predicted, true), _TITLES.get(name, name)) for name in metrics]
    return Measured([*found, Measurement("score", sum(m.value for m in found) / len(found), headline=True)])

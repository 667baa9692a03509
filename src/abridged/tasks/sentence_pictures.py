"""What a report shows of sentences: where they lie, whom they are like, which neighbours are kept, the worst pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from abridged.evaluation.sentences import NEIGHBOURS, nearest
from abridged.report.data import SentencePair, SentencePicture
from abridged.report.pictures import token_picture

#: Sentences that are compared, and that are drawn as points; pairs that are drawn, and that are named.
COMPARED, DRAWN, PAIRS, NAMED = 400, 160, 1200, 8


def sentence_picture(sentences: Sequence[str], vectors: Mapping[str, np.ndarray]) -> SentencePicture | None:
    """How several models see sentences; None where there are too few to have neighbours.

    Args:
        vectors: (n, d) of length 1 by model: "teacher" first, "student" last.
    """
    if len(sentences) < 3:
        return None
    found = {name: array[:COMPARED].astype(np.float64) for name, array in vectors.items()}
    teacher, *others = found
    count = min(len(sentences), COMPARED)
    neighbours = max(1, min(NEIGHBOURS, (count - 1) // 2))
    near = {name: nearest(array, neighbours) for name, array in found.items()}
    first, second = np.triu_indices(count, 1)
    own = np.zeros((count, count), dtype=bool)
    own[np.arange(count)[:, None], near[teacher]] = True
    own = (own | own.T)[first, second]
    cosines = {name: (array @ array.T)[first, second] for name, array in found.items()}
    draw = np.random.default_rng(0)
    some = np.sort(
        np.concatenate([draw.permutation(np.flatnonzero(own == kind))[: PAIRS // 2] for kind in (False, True)])
    )
    roles = {"teacher": "teacher", "student": "student"}
    drawn = {name: (roles.get(name, "rounded"), array[:DRAWN]) for name, array in found.items()}
    return SentencePicture(
        points=token_picture(list(sentences[:DRAWN]), drawn),
        similarities={name: values[some] for name, values in cosines.items()},
        own=own[some],
        neighbours=neighbours,
        kept={
            name: (near[name][:, :, None] == near[teacher][:, None, :]).any(-1).sum(1).astype(int) for name in others
        },
        worst=[
            SentencePair(sentences[first[i]], sentences[second[i]], {name: float(cosines[name][i]) for name in found})
            for i in _worst(cosines[others[-1]] - cosines[teacher], first, second)
        ]
        if others
        else [],
    )


def _worst(errors: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[int]:
    """The pairs with the largest errors, none of whose sentences is in a worse one."""
    chosen: list[int] = []
    seen: set[int] = set()
    for i in np.argsort(-np.abs(errors), kind="stable").tolist():
        pair = {int(first[i]), int(second[i])}
        if not pair & seen:
            chosen.append(i)
            seen |= pair
        if len(chosen) == NAMED:
            break
    return chosen

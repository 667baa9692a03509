"""Entities that tags of words mark, such as names of people and places, and how many of them were found.

Counted as conlleval does (Tjong Kim Sang and De Meulder, CoNLL 2003, arXiv:cs/0306050), and seqeval in its default
mode: an entity is found where its kind and both of its ends are right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from abridged.core.measurement import Measured, Measurement

NO_TAG = "O"  #: of a word that is part of no entity
#: B, I and O; or E and S, too, for the last word of several and for one that stands alone (L and U in BILOU).
_MARK = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
_AS = {"L": "E", "U": "S"}


class Entity(NamedTuple):
    """Words `first` … `last` - 1 of a text."""

    kind: str
    first: int
    last: int


def marks_entities(tags: Sequence[str]) -> bool:
    """Whether tags say where entities begin and end, in IOB, IOBES or BILOU; parts of speech do not."""
    return set(tags) != {NO_TAG} and all(tag == NO_TAG or _MARK.fullmatch(tag) for tag in tags)


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """The entities of a text's tags, in order; I without a B before it begins one, as it does in IOB1.

    Tags that mark nothing else are each the kind of one word.
    """
    before, kind, begun = NO_TAG, "", None
    for place, tag in enumerate([*tags, NO_TAG]):
        found = _MARK.fullmatch(tag)
        mark, name = (_AS.get(found[1], found[1]), found[2]) if found else (NO_TAG if tag == NO_TAG else "S", tag)
        if not (mark in "IE" and before in "BI" and name == kind):
            if begun is not None:
                yield Entity(kind, begun, place)
            begun = None if mark == NO_TAG else place
        before, kind = mark, name


def entity_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]], marked: bool = True) -> Measured:
    """F1, precision and recall over the entities of all texts, each kind's F1, and the share of tags that are right.

    Args:
        predicted, true: tags of the words of each text.
        marked: whether the tags mark entities; else the share of right tags is all that there is, and the headline.

    Returns:
        All in per cent; `score` is F1, or the share; `words` and `entities`, how many there are.
    """
    pairs = [(p, t) for found, wanted in zip(predicted, true, strict=True) for p, t in zip(found, wanted, strict=True)]
    right = 100 * sum(p == t for p, t in pairs) / max(1, len(pairs))
    accuracy = Measurement("accuracy", right, "accuracy of tags")
    if not marked:
        return Measured([accuracy, Measurement("score", right, headline=True)], words=len(pairs))
    both, given, there = Counter[str](), Counter[str](), Counter[str]()
    for found, wanted in zip(predicted, true, strict=True):
        ours, theirs = set(entities(found)), set(entities(wanted))
        both.update(entity.kind for entity in ours & theirs)
        given.update(entity.kind for entity in ours)
        there.update(entity.kind for entity in theirs)
    f1 = _f1(both.total(), given.total(), there.total())
    kinds = [
        Measurement(f"f1_{kind}", _f1(both[kind], given[kind], there[kind]), part=f"{kind} ({there[kind]:,})")
        for kind in sorted(there)
    ]
    return Measured(
        [
            Measurement("f1", f1, "F1"),
            Measurement("precision", _share(both.total(), given.total()), "precision"),
            Measurement("recall", _share(both.total(), there.total()), "recall"),
            accuracy,
            *kinds,
            Measurement("score", f1, headline=True),
        ],
        words=len(pairs),
        entities=there.total(),
    )


def _share(some: int, of: int) -> float:
    return 100 * some / of if of else 0.0


def _f1(both: int, given: int, there: int) -> float:
    """2 · both / (given + there), which is the harmonic mean of precision and recall; 0 where there are none."""
    return _share(2 * both, given + there)

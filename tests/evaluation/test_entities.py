"""Entities and their scores, against what seqeval publishes of its own (README and tests of version 1.2.2)."""

import pytest

from abridged.evaluation.entities import entities, entity_scores, marks_entities

TRUE = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
FOUND = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("O", []),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("I-PER I-PER I-LOC O I-LOC", [("PER", 0, 2), ("LOC", 2, 3), ("LOC", 4, 5)]),  # IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("S-PER B-LOC I-LOC E-LOC O", [("PER", 0, 1), ("LOC", 1, 4)]),  # IOBES
        ("E-LOC E-LOC I-LOC S-LOC", [("LOC", 0, 1), ("LOC", 1, 2), ("LOC", 2, 3), ("LOC", 3, 4)]),
        ("U-PER B-LOC L-LOC O", [("PER", 0, 1), ("LOC", 1, 3)]),  # BILOU
        ("B-A-B I-A-B", [("A-B", 0, 2)]),
        ("NOUN NOUN O", [("NOUN", 0, 1), ("NOUN", 1, 2)]),
    ],
)
def test_where_entities_begin_and_end(tags, expected):
    assert list(entities(tags.split())) == expected


def test_scores_are_those_that_seqeval_publishes():
    found = entity_scores(FOUND, TRUE)
    assert (found["f1"], found["precision"], found["recall"], found["accuracy"]) == (50, 50, 50, 80)
    assert (found["f1_MISC"], found["f1_PER"]) == (0, 100)
    assert found.headline.value == found["score"] == 50
    assert found.facts == {"words": 10, "entities": 2}
    assert [m.part for m in found.measurements if m.part] == ["MISC (1)", "PER (1)"]
    assert entity_scores([["I-NP", "I-NP", "O"]], [["B-NP", "I-NP", "O"]])["f1"] == 100


def test_precision_and_recall_are_not_each_other():
    found = entity_scores([["B-A", "O", "O", "O"]], [["B-A", "B-A", "B-B", "I-B"]])
    assert (found["precision"], found["recall"], found["f1"]) == (100, pytest.approx(100 / 3), 50)
    assert found["f1_A"] == pytest.approx(200 / 3)
    assert entity_scores([["O"]], [["O"]])["f1"] == 0


def test_tags_that_mark_nothing_are_measured_by_how_many_are_right():
    assert not marks_entities(("NOUN", "VERB"))
    assert not marks_entities(("O",))
    assert marks_entities(("O", "B-LOC", "I-LOC"))
    found = entity_scores([["NOUN", "O"]], [["NOUN", "VERB"]], marked=False)
    assert found == {"accuracy": 50, "score": 50, "words": 2}

"""What kind of number a measurement is: which way is better, and how much of it was lost."""

import json
import math

import pytest

from abridged.core.measurement import Measured, Measurement, loss_percent
from abridged.evaluation.perplexity import perplexities


def both(perplexity, rouge):
    group = Measured([Measurement("rouge1", rouge, "ROUGE-1", headline=True)], words=5.5)
    return Measured(perplexities(10 * math.log(perplexity), 10, 5), tokens=10).also(rouge=group, rouge_pairs=3)


def test_a_loss_is_a_rise_of_what_should_be_low_and_a_fall_of_what_should_be_high():
    assert Measurement("x", 25.0, better="lower").loss(20.0) == pytest.approx(0.25)
    assert Measurement("x", 60.0, better="higher").loss(80.0) == pytest.approx(0.25)
    assert Measurement("x", 1.0).loss(0.0) is None
    assert Measurement("x", 2.0, better="lower").rank < Measurement("x", 3.0, better="lower").rank
    assert Measurement("x", 3.0).rank < Measurement("x", 2.0).rank


def test_they_are_written_as_before_and_old_ones_can_be_compared_with():
    teacher, student = both(20.0, 30.0), both(25.0, 15.0)
    written = json.loads(json.dumps(teacher))
    assert written == {
        "perplexity": pytest.approx(20.0), "word_perplexity": pytest.approx(400.0), "tokens": 10,
        "rouge": {"rouge1": 30.0, "words": 5.5}, "rouge_pairs": 3,
    }  # fmt: skip
    expected = {"perplexity": 25.0, "word_perplexity": 56.25, "rouge1": 50.0}
    assert loss_percent(written, student) == loss_percent(teacher, student) == pytest.approx(expected)
    assert loss_percent({"perplexity": 20.0}, student) == pytest.approx({"perplexity": 25.0})


def test_what_is_no_measurement_is_a_fact():
    found = both(20.0, 30.0)
    assert found.facts == {"tokens": 10, "words": 5.5, "rouge_pairs": 3}
    assert [m.name for m in found.measurements] == ["perplexity", "word_perplexity", "rouge1"]
    assert found.headline.column == "perplexity per token"
    assert found.measurements[-1].column == "ROUGE-1"
    assert Measured([Measurement("f1", 1.0), Measurement("score", 2.0, headline=True)]).headline.name == "score"

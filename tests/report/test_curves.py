import numpy as np

from abridged.report.curves import read_curves


def line(event="train", stage=0, step=1, **values):
    return {"event": event, "stage": stage, "step": step, **values}


def test_nothing_logged_is_no_section():
    assert read_curves([]) is None
    assert read_curves([{"event": "begin"}]) is None


def test_stages_lie_end_to_end_with_a_gap_between():
    found = read_curves([line(step=10, loss=3.0), line(step=20, loss=2.0), line(stage=1, step=5, loss=4.0)])
    (loss,) = found.losses
    assert loss.steps.tolist() == [10, 20, 25, 25]
    np.testing.assert_array_equal(loss.values, [3.0, 2.0, np.nan, 4.0])
    assert found.starts == [20]
    assert found.steps == 25


def test_terms_rates_and_perplexity_are_told_apart():
    found = read_curves(
        [
            line(step=1, loss=3.0, logits=2.5, contrastive=5.0, lr=1e-3, tokens_per_second=9.0, gradient_norm=1.0),
            line("evaluate", step=1, perplexity=40.0, word_perplexity=90.0),
        ]
    )
    assert [curve.name for curve in found.losses] == ["loss", "logits", "contrastive"]
    assert [curve.name for curve in found.rates] == ["weights"]
    assert found.watched.values.tolist() == [40.0]


def test_rates_by_group():
    found = read_curves([line(loss=1.0, lr={"weights": 1e-3, "scale": 5e-4})])
    assert [curve.name for curve in found.rates] == ["weights", "scale"]


def test_a_single_term_is_not_drawn_twice():
    found = read_curves([line(step=1, loss=1.0, labels=1.0), line(step=2, loss=0.5, labels=0.5)])
    assert [curve.name for curve in found.losses] == ["labels"]

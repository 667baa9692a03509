"""What a plan expected stands beside what came of it."""

import math

import pytest

from abridged.core.measurement import Measured, Measurement
from abridged.recipe import Recipe
from abridged.report.collect import plan_outcome
from abridged.report.data import PlanOutcome, ReportData
from abridged.report.figure import standalone
from abridged.report.page import render
from abridged.report.plots import front

STAGE = {"methods": {"quantize": {}}, "objectives": {"logits": {}}, "training": {"steps": 0}}
EXPECTED = {
    "size": 1_300_100,
    "file_bytes": 1_300_000,
    "loss": 0.25,
    "way": "interpolated",
    "tokens": 512,
    "front": [[1_000_000, 0.9]],
}


def perplexity(value):
    return Measured([Measurement("perplexity", value, title="perplexity", better="lower", logarithmic=True)])


def test_the_loss_is_the_rise_of_the_log_perplexity():
    recipe = Recipe.load({"name": "planned", "expected": EXPECTED, "stages": [STAGE]})
    found = plan_outcome(recipe, {"file_bytes": 1_299_999}, perplexity(20.0), perplexity(30.0))
    assert found.loss == pytest.approx(math.log(1.5))
    assert (found.expected_bytes, found.file_bytes, found.trained) == (1_300_000, 1_299_999, False)


def test_what_has_no_perplexity_has_no_loss_and_what_was_not_planned_no_outcome():
    accuracy = Measured([Measurement("accuracy", 0.9, title="accuracy")])
    recipe = Recipe.load({"name": "planned", "expected": EXPECTED, "stages": [STAGE]})
    assert plan_outcome(recipe, {"file_bytes": 1}, accuracy, accuracy).loss is None
    assert plan_outcome(Recipe.load({"name": "plain", "stages": [STAGE]}), {}, accuracy, accuracy) is None


@pytest.mark.parametrize("loss", [0.3, None, -0.01, math.inf])
def test_a_report_shows_both(loss):
    outcome = PlanOutcome(
        1_300_000, 0.25, 1_299_992, loss, True, "interpolated", 512, [(1_000_000, 0.9), (2_000_000, 0.1)]
    )
    page = render(ReportData(title="t", plan=outcome))
    assert "Planned, and what came of it" in page
    assert "1,300,000" in page
    assert "1,299,992" in page
    assert "0.2500" in page
    assert "Planned" not in render(ReportData(title="t"))


def test_the_picture_is_a_file_of_its_own_whose_colours_are_all_there():
    svg = standalone(front([(1_000_000, 0.9), (2_000_000, 0.1)], (1_500_000, 0.4)))
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" ')
    used = {part.partition(")")[0] for part in svg.split("var(--")[1:]}
    assert used
    assert all(f"--{name}:" in svg for name in used)

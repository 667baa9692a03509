"""Which hidden width is kept, of those that were tried."""

from types import SimpleNamespace

import pytest
import torch

from abridged import families
from abridged.families.layout import HIDDEN, layout_of
from abridged.methods import METHODS
from abridged.methods.pruning.fitting import Fitting, divergence
from pruned import build, calibrate


def selection(width):
    return SimpleNamespace(kept={HIDDEN: torch.arange(width)})


@pytest.mark.parametrize(("best", "round_to"), [(8, 1), (20, 1), (32, 1), (4, 4), (28, 4)])
def test_the_search_goes_down_or_up_as_long_as_it_gets_nearer(monkeypatch, best, round_to):
    model = build("bert")
    fitting = Fitting(layout_of(model, families.view(model)), {}, {}, calibrate, None, components=False)
    monkeypatch.setattr(fitting, "distance", lambda kept: abs(len(kept[HIDDEN]) - best))
    found, tried = fitting.nearest(selection(20), selection, 20, round_to)
    assert abs(len(found.kept[HIDDEN]) - best) <= 1
    assert all(width % round_to == 0 for width in tried)
    assert min(tried, key=tried.get) == len(found.kept[HIDDEN])
    few = fitting.nearest(selection(20), selection, most=2)[1]
    assert len(few) <= 3


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart"])
def test_what_is_kept_is_nearest_and_within_the_budget(name):
    model = build(name)
    total = sum(p.numel() for p in model.parameters())
    method = METHODS["prune"](
        budget={"parameters": 0.5}, masks="magnitude", reconstruct=True, hidden="components", widths=4
    )
    attached = method.build(model, families.view(model), calibrate)
    facts = attached.finish().account()["prune"]
    tried = facts["widths"]
    assert 1 < len(tried) <= 5
    assert tried[str(facts["hidden"][0])] == min(tried.values())
    assert 0.48 * total < sum(p.numel() for p in model.parameters()) == facts["reached"] <= 0.5 * total


def test_divergence():
    logits, others = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    expected = torch.nn.functional.kl_div(others.log_softmax(-1), logits.softmax(-1), reduction="sum") / 12
    assert divergence(logits, others) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(logits, logits + 3) == pytest.approx(0, abs=1e-6)  # of probabilities, not of logits
    assert divergence(torch.ones(4, 1), torch.full((4, 1), 3.0)) == 4


def test_widths_need_the_fit():
    with pytest.raises(ValueError, match="needs reconstruct: true"):
        METHODS["prune"](budget={"parameters": 0.5}, widths=2)

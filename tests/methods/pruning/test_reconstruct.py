"""Weights that make up for a cut, against the whole model's outputs."""

import copy

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods import METHODS
from abridged.methods.pruning.reconstruct import reconstruct
from pruned import MODELS, build, calibrate, cut_to, masked, outputs


def cut_model(name, share):
    """A model, its copy that is cut to a share of all units, the layout, and what is kept."""
    whole = build(name).eval()
    model = copy.deepcopy(whole)
    masks, kept = masked(model, share=share)
    with torch.no_grad():
        masks.mask.mu.fill_(1.0)
        masks.mask.log_alpha.clamp_(max=-30.0)  # factors of 1
    layout = masks.layout
    cut_to(model, masks, kept)
    return whole, model, layout, kept


@pytest.mark.parametrize("name", list(MODELS))
def test_the_outputs_come_nearer(name):
    whole, model, layout, kept = cut_model(name, 0.7)
    wanted, before = outputs(whole), outputs(model)
    reconstruct(model, whole, layout, kept, calibrate)
    after = outputs(model)
    assert torch.isfinite(after).all()
    assert (after - wanted).square().mean() < (before - wanted).square().mean()


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_of_which_nothing_was_cut_stays_as_it_is(name):
    whole, model, layout, kept = cut_model(name, 1.0)
    reconstruct(model, whole, layout, kept, calibrate)
    assert torch.allclose(outputs(model), outputs(whole), atol=1e-3)


def test_one_matrix_is_the_best_there_is():
    """Against least squares of the outputs on the inputs, with a column of 1, where there are inputs enough."""
    whole, model, layout, kept = cut_model("bert", 0.6)
    first = next(m for m in layout.modules if m.path == "bert.encoder.layer.0.attention.self.query")
    found = {}

    def keep(name):
        return lambda module, arguments: found.__setitem__(name, arguments[0].flatten(0, -2).double())

    for name, owner in (("x", model), ("z", whole)):
        owner.get_submodule(first.path).register_forward_pre_hook(keep(name))
    reconstruct(model, whole, layout, kept, calibrate)
    outputs(model), outputs(whole)
    old, new = whole.get_submodule(first.path).double(), model.get_submodule(first.path).double()
    rows = first.rows.index(kept)
    wanted = old(found["z"])[:, rows]
    ones = torch.ones(len(found["x"]), 1, dtype=torch.float64)
    best = torch.cat([found["x"], ones], 1)
    residual = wanted - best @ torch.linalg.lstsq(best, wanted).solution
    reached = (wanted - new(found["x"])).square().sum()
    assert residual.square().sum() <= reached <= 1.1 * residual.square().sum() + 1e-4


def test_inputs_that_are_not_finite_are_refused():
    whole, model, layout, kept = cut_model("gpt2", 0.7)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "ln_1" in n).fill_(float("nan"))
    with pytest.raises(AbridgedError, match="not all finite"):
        reconstruct(model, whole, layout, kept, calibrate)


def test_a_recipe_asks_for_it():
    model = build("gpt2").eval()
    wanted, distances = outputs(model), []
    for asked in (False, True):
        student = copy.deepcopy(model)
        method = METHODS["prune"](budget={"parameters": 0.6}, masks="magnitude", reconstruct=asked)
        attached = method.build(student, families.view(student), calibrate)
        attached.finish()
        distances.append(float((outputs(student) - wanted).square().mean()))
    assert distances[1] < distances[0]

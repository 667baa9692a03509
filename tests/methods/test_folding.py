"""Adapters rounded into codes: near to what they were, on the scales that were there, and gone afterwards."""

import copy

import pytest
import torch

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.methods.folding import fold
from abridged.methods.lora import Lora
from abridged.methods.quantization.method import Quantize
from abridged.runtime.adapters import adapted
from packed import GROUPS
from pruned import answer, build

pytest.importorskip("peft")
FORMS = {
    "2 bits": {"weights": {"bits": 2}},
    "ternary, rounded inputs": {
        "weights": {"bits": 2, "quantizer": "twn"},
        "activations": {"bits": 8, "quantizer": "dynamic"},
    },
    "8 bits": {"weights": {"bits": 8, "quantizer": "minmax", "granularity": "per_channel"}},
    "groups with zero points": {"weights": {"bits": 4, **GROUPS, "group_size": 16}},
}


def small(settings, size=0.1, name="gpt2"):
    """A packed model with adapters of some size."""
    model = build(name)
    settings = {"activations": {"bits": None}, **settings}
    calibrate = lambda m, tokens=None: answer(m)  # noqa: E731
    Quantize.model_validate(settings).build(model, families.view(model), calibrate).finish()
    model = pack_model(model)
    attached = Lora(rank=2, alpha=2).build(model, families.view(model), calibrate)
    torch.manual_seed(3)
    for factor in attached.parameter_groups()["adapter"]:
        factor.data = size * torch.randn_like(factor)
    attached.finish()
    return model.eval()


@torch.no_grad()
def calibrate(model, tokens=None):
    """A text that says more than the batch which is looked at."""
    ids = torch.randint(5, 96, (16, 40), generator=torch.Generator().manual_seed(7))
    model(input_ids=ids)


@pytest.mark.parametrize("form", FORMS)
def test_most_of_what_they_do_is_in_the_codes(form):
    model = small(FORMS[form])
    base = without(model)
    with torch.no_grad():
        aim, before = answer(model), answer(base)
        scales = {name: p.clone() for name, p in base.named_parameters() if name.endswith("scales")}
        folded = fold(model, calibrate)
        after = answer(folded)
    assert not adapted(folded)
    for name, parameter in folded.named_parameters():
        assert name not in scales or torch.equal(parameter, scales[name])
    lost = float((after - aim).norm() / (before - aim).norm())
    assert lost < (0.1 if form == "8 bits" else 0.9), lost


@pytest.mark.parametrize("form", FORMS)
def test_adapters_that_add_nothing_leave_every_code(form):
    model = small(FORMS[form], size=0.0)
    before = {name: p.clone() for name, p in without(model).named_parameters()}
    for name, parameter in fold(model, calibrate).named_parameters():
        assert torch.equal(parameter, before[name]), name


def without(model):
    """A copy of the packed model that the adapters stand beside."""
    base = copy.deepcopy(model)
    for path, layer in adapted(base).items():
        base.set_submodule(path, layer.base_layer)
    return base

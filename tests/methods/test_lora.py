"""Low-rank adapters: nothing at first, trained alone, and gone afterwards."""

import pytest
import torch

from abridged.errors import AbridgedError
from abridged.families import anatomy_of
from abridged.methods.lora import Lora
from abridged.methods.quantization.method import Quantize
from pruned import answer, build, small

pytest.importorskip("peft")
FAMILIES = ["gpt2", "bert", "llama", "bart"]


def adapted(model, **settings):
    method = Lora.model_validate(settings)
    method.prepare(model, anatomy_of(model), lambda model: None)
    return method


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_change_nothing_until_they_are_trained(name):
    model = build(name)
    before, names = answer(model), set(model.state_dict())
    method = adapted(model)
    assert torch.allclose(answer(model), before, atol=1e-6)
    method.finish(model)
    assert torch.equal(answer(model), before)
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_trained_is_added_up(name):
    model = build(name)
    before = answer(model)
    method = adapted(model, rank=2, alpha=4)
    adapters = method.parameter_groups(model)["adapter"]
    assert len(adapters) == 2 * sum(matrix.part in ("attention", "ffn") for matrix in anatomy_of(build(name)).matrices)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapters:
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = answer(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    method.finish(model)
    assert torch.allclose(answer(model), trained, atol=1e-4)


def test_a_pruned_model_gets_adapters_of_its_own_sizes():
    model = small("llama")
    shapes, before = model.shapes, answer(model)
    adapted(model).finish(model)
    assert model.shapes is shapes
    assert torch.equal(answer(model), before)


def test_a_quantised_matrix_gets_none():
    model = build("gpt2")
    Quantize.model_validate({}).prepare(model, anatomy_of(model), lambda model: None)
    with pytest.raises(AbridgedError, match="no full-precision matrix"):
        adapted(model)

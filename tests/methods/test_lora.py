"""Low-rank adapters: nothing at first, trained alone, and gone afterwards."""

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.methods.lora import Lora
from abridged.methods.quantization.method import Quantize
from abridged.storage.compressed import compressed_of
from pruned import answer, build, small

pytest.importorskip("peft")
FAMILIES = ["gpt2", "bert", "llama", "bart"]


def adapted(model, **settings):
    return Lora.model_validate(settings).build(model, families.view(model), lambda model: None)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_change_nothing_until_they_are_trained(name):
    model = build(name)
    before, names = answer(model), set(model.state_dict())
    attached = adapted(model)
    assert torch.allclose(answer(model), before, atol=1e-6)
    attached.finish()
    assert torch.equal(answer(model), before)
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_trained_is_added_up(name):
    model = build(name)
    before = answer(model)
    attached = adapted(model, rank=2, alpha=4)
    adapters = attached.parameter_groups()["adapter"]
    assert len(adapters) == 2 * sum(
        matrix.part in ("attention", "ffn") for matrix in families.view(build(name)).matrices
    )
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapters:
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = answer(model)
    assert not torch.allclose(trained, before, atol=1e-2)
    attached.finish()
    assert torch.allclose(answer(model), trained, atol=1e-4)


def test_a_pruned_model_gets_adapters_of_its_own_sizes():
    model = small("llama")
    shapes, before = compressed_of(model).shapes, answer(model)
    adapted(model).finish()
    assert compressed_of(model).shapes is shapes
    assert torch.equal(answer(model), before)


def test_a_quantised_matrix_gets_none():
    model = build("gpt2")
    Quantize.model_validate({}).build(model, families.view(model), lambda model: None)
    with pytest.raises(AbridgedError, match="no full-precision matrix"):
        adapted(model)

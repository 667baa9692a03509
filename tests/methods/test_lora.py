"""Low-rank adapters: nothing at first, trained alone, and gone afterwards."""

import pytest
import torch

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.families.standin import inputs_of
from abridged.methods.lora import Lora
from abridged.methods.quantization.method import Quantize
from abridged.runtime.adapters import adapted as layers_of
from abridged.runtime.decoding import Forward, why_slow
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
    with pytest.raises(AbridgedError, match="no full-precision and no packed matrix"):
        adapted(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_beside_packed_weights_they_are_those_of_the_dense_model(name):
    """Values and gradients of A, B, norms and biases in float64: codes pass them on as if W stood there."""
    packed = packed_model(name)
    dense = dense_model(packed, torch.float64).double()
    packed.double()
    for model in (packed, dense):
        attached = adapted(model, rank=2, norms=True)
        torch.manual_seed(3)
        for factor in attached.parameter_groups()["adapter"]:
            factor.data = 0.1 * torch.randn(factor.shape, dtype=torch.float64)
        for vector in attached.parameter_groups()["norm"]:
            vector.requires_grad_(True)
    torch.testing.assert_close(answer(packed), answer(dense), rtol=1e-10, atol=1e-10)
    found, wanted = (gradients(model) for model in (packed, dense))
    assert sum("lora_" in key for key in found) == 2 * len(layers_of(packed))
    assert any("norm" in key.lower() or ".ln_1." in key for key in found)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-9, atol=1e-12, msg=key)


def test_beside_packed_weights_they_stay():
    model = packed_model("gpt2")
    before, attached = answer(model), adapted(model)
    assert torch.equal(answer(model), before)
    attached.finish()
    assert len(layers_of(model)) == len(attached.paths)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" not in name)


def test_one_token_at_a_time_an_adapter_counts_however_small():
    """Steps that go from kernel to kernel know of no adapter, and a small one would be within their tolerance."""
    model = packed_model("gpt2", {"activations": {"bits": 8}})
    for factor in adapted(model, rank=2).parameter_groups()["adapter"]:
        factor.data.fill_(1e-4)
    assert not isinstance(model.forward, Forward) or why_slow(model) == "the model has adapters"


def packed_model(name, settings=None):
    model = build(name)
    settings = settings or {"activations": {"bits": None}}
    Quantize.model_validate(settings).build(model, families.view(model), lambda m, tokens=None: answer(m)).finish()
    return pack_model(model)


def gradients(model):
    """Of a sum of what a model answers, by the name of a parameter as peft has it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.zero_grad()
    with torch.enable_grad():
        next(iter(model(**inputs_of(model)).values())).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}

"""Activation quantisers of stored models."""

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.runtime.activations import DynamicActivation, StaticActivation, build_activation


@pytest.mark.parametrize("module", [StaticActivation(8, True), StaticActivation(4, False), DynamicActivation(8)])
def test_description_builds_the_same_module(module):
    built = build_activation(module.describe())
    assert type(built) is type(module)
    assert built.describe() == module.describe()
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    "description",
    [
        {},
        {"kind": "static", "bits": 3, "symmetric": True},
        {"kind": "static", "bits": 8},
        {"kind": "dynamic", "bits": 8, "symmetric": True},
        {"kind": "learned", "bits": 8},
        {"kind": "dynamic", "bits": "8"},
    ],
)
def test_other_descriptions_are_errors(description):
    with pytest.raises(AbridgedError):
        build_activation(description)


def test_static_symmetric_values():
    module = StaticActivation(8, True)
    module.scale.fill_(0.5)
    x = torch.tensor([-100.0, -0.6, 0.1, 0.8, 63.5, 100.0])
    assert torch.equal(module(x), torch.tensor([-63.5, -0.5, 0.0, 1.0, 63.5, 63.5]))


def test_static_asymmetric_values():
    module = StaticActivation(4, False)
    module.scale.fill_(0.5)
    module.zero_point.fill_(2)
    assert torch.equal(module(torch.tensor([-9.0, -0.6, 0.0, 6.5, 9.0])), torch.tensor([-1.0, -0.5, 0.0, 6.5, 6.5]))


def test_scale_keeps_its_precision_when_the_model_is_cast():
    module = StaticActivation(8, True)
    module.scale.fill_(0.1)
    module.bfloat16()
    assert module.scale.dtype == torch.float32
    assert module.scale.item() == torch.tensor(0.1).item()
    assert module(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_dynamic_is_per_token_and_straight_through():
    x = torch.randn(3, 5, 64) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1.0]).view(1, 5, 1)
    x.requires_grad_()
    module = DynamicActivation(8)
    y = module(x)
    step = x.detach().abs().amax(-1, keepdim=True) / 127
    assert ((y - x).abs() <= step * 0.5001 + 1e-12).all()
    levels = y / step.clamp_min(1e-10)
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert torch.equal(module(x[1:2, 2:3]), y[1:2, 2:3])
    grad = torch.randn_like(x)
    y.backward(grad)
    assert torch.equal(x.grad, grad)

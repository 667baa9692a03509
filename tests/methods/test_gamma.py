"""γ for each scale: the same arithmetic as for a matrix, with a parameter more."""

import pytest
import torch

from abridged.methods.quantization.modules import QuantizedWeight
from abridged.methods.quantization.settings import WeightSettings


@pytest.mark.parametrize(("granularity", "group_size", "scales"), [("per_channel", None, 6), ("per_group", 4, 12)])
def test_each_scale_has_its_gamma(granularity, group_size, scales):
    torch.manual_seed(0)
    settings = WeightSettings(
        bits=2, granularity=granularity, group_size=group_size, gamma="scale", initialization="least_squares"
    )
    source = QuantizedWeight(torch.randn(6, 8), 1, settings, "w")
    assert source.quantizer.gamma.shape == (scales,)
    index = torch.tensor([4, 1, 1])
    assert torch.equal(source.rows(index), source()[index])
    source.rows(index).sum().backward()
    per_row = scales // 6
    moved = source.quantizer.gamma.grad.view(6, per_row).abs().sum(1) > 0
    assert not moved[[0, 2, 3, 5]].any()
    stored = source.stored()
    assert torch.equal(stored.levels.float().view(scales, -1) * stored.scale.view(-1, 1), source().view(scales, -1))


def test_error_is_no_larger_than_with_one_gamma():
    torch.manual_seed(0)
    weight = torch.randn(16, 32) * torch.rand(16, 1)
    errors = {}
    for gamma in ("matrix", "scale"):
        settings = WeightSettings(bits=2, granularity="per_channel", gamma=gamma, initialization="least_squares")
        errors[gamma] = (QuantizedWeight(weight, 1, settings, "w")() - weight).square().sum()
    assert errors["scale"] <= errors["matrix"] * 1.001

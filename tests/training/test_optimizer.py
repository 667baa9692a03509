"""Rates at every step, and which parameter has which."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.blocks import Blocks
from abridged.training.optimizer import make_optimizer, rate_factor, total_steps


def rates(steps=100, **settings):
    return [rate_factor(TrainingSettings(**settings), step, steps) for step in range(steps)]


def test_rates_rise_to_their_peak_and_fall_in_a_line():
    factors = rates(warmup=0.1, schedule="linear")
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == pytest.approx([1 - i / 90 for i in range(90)])
    assert factors[-1] > 0  # the last step still learns


def test_cosine_is_half_way_down_in_the_middle():
    factors = rates(warmup=0, schedule="cosine", final_rate=0.2)
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.2 + 0.8 * 0.5)
    assert factors[25] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert factors == sorted(factors, reverse=True)


def test_constant_stays():
    assert rates(warmup=0.05, schedule="constant")[5:] == [1.0] * 95


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_very_short_runs_have_rates_too(steps, warmup):
    assert all(0 < factor <= 1 for factor in rates(steps, warmup=warmup))


@pytest.mark.parametrize(("epochs", "steps"), [(None, 1000), (1, 5), (2.5, 12), (0.001, 1)])
def test_epochs_count_instead_of_steps(epochs, steps):
    blocks = Blocks(np.zeros(20 * 8 + 1, dtype=np.int32), 8)
    assert total_steps(TrainingSettings(epochs=epochs, batch_size=4), blocks) == steps


@pytest.fixture
def system():
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    module[2].bias.requires_grad_(False)
    return module


def test_groups(system):
    scale = system[1].weight
    settings = TrainingSettings(learning_rate=1e-3, learning_rates={"scale": 5e-2}, weight_decay=0.1, betas=(0.8, 0.9))
    optimizer = make_optimizer(system, settings, {"scale": [scale], "clip": []})
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: (g["rate"], g["weight_decay"], g["betas"]) for name, g in groups.items()} == {
        "weights": (1e-3, 0.1, (0.8, 0.9)),
        "vectors": (1e-3, 0.0, (0.8, 0.9)),
        "scale": (5e-2, 0.0, (0.8, 0.9)),
    }
    assert [p is scale for p in groups["scale"]["params"]] == [True]
    assert all(p.ndim == 2 for p in groups["weights"]["params"])
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in system.parameters() if p.requires_grad)


def test_a_group_without_a_rate_of_its_own_has_the_weights(system):
    optimizer = make_optimizer(system, TrainingSettings(learning_rate=2e-3), {"scale": [system[1].weight]})
    assert {group["rate"] for group in optimizer.param_groups} == {2e-3}


def test_a_rate_for_a_group_that_does_not_exist(system):
    with pytest.raises(AbridgedError, match="names the group skale.*they have: scale"):
        make_optimizer(system, TrainingSettings(learning_rates={"skale": 1.0}), {"scale": [system[1].weight]})


def test_only_matrices_decay(system):
    optimizer = make_optimizer(system, TrainingSettings(weight_decay=0.5, learning_rate=0.1), {})
    for group in optimizer.param_groups:
        group["lr"] = group["rate"]
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    for parameter in system.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in system.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "2.weight"}

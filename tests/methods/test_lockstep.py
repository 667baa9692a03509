"""Layers of two models met side by side: what each is told, and where the passes end."""

import copy

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.methods.lockstep import Inputs, in_lockstep, target, token_weights
from held import held_by

PATHS = ["transformer.h.0.mlp.c_fc", "transformer.h.1.attn.c_attn"]


def test_the_inputs_of_a_pass_come_in_its_order(model):
    paths = ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]
    inputs = Inputs(model, paths, lambda model: model(torch.ones(2, 8, dtype=torch.int64)))
    assert inputs.at(paths[1]) is None  # not yet
    assert [tuple(inputs.at(path).shape) for path in paths] == [(2, 8, 32), (2, 8, 128)]
    assert inputs.at(paths[0]) is None  # the pass is over
    inputs.stop()


def test_a_layer_changed_in_its_turn_changes_what_the_next_one_is_told(model, ids):
    before, met, ended = copy.deepcopy(model), [], []
    model.transformer.h[1].mlp.register_forward_hook(lambda *_: ended.append(True))

    def take(path, moments, crossed):
        met.append((path, moments, crossed))
        model.get_submodule(path).weight.data.mul_(5)

    in_lockstep(model, before, PATHS, lambda model, tokens: model(ids), take, "")
    assert [path for path, *_ in met] == PATHS
    same, other = ((crossed - moments).abs().max() / moments.abs().max() for _, moments, crossed in met)
    assert same < 1e-6 < other
    assert not ended  # nothing after the last of the layers is run


def test_the_target_has_the_outputs_of_the_inputs_in_full_precision():
    draw = torch.Generator().manual_seed(0)
    weight, mixing = torch.randn(8, 6, generator=draw), torch.randn(6, 6, generator=draw)
    z = torch.randn(200, 6, generator=draw)
    x = z @ mixing
    aim, moments = target(weight, x.t() @ x, z.t() @ x, "layer", damping=1e-9)
    torch.testing.assert_close(x @ aim.t(), z @ weight.t(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moments.float(), x.t() @ x)
    assert target(weight, moments, None, "layer")[0] is weight
    with pytest.raises(AbridgedError, match="the inputs of layer are not all finite"):
        target(weight, x.t() @ x, (z * torch.nan).t() @ x, "layer")


def test_one_massive_token_counts_no_more_than_the_cap():
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[0] *= 1000
    weights = token_weights(x, 10.0)
    energy = x.square().mean(1)
    assert float((x[0] * weights[0]).square().mean()) == pytest.approx(10 * float(energy.median()), rel=1e-4)
    assert torch.equal(weights[1:][energy[1:] <= 10 * energy.median()], torch.ones(63, 1))
    sparse = torch.zeros(64, 8)
    sparse[0] = 1.0
    assert torch.equal(token_weights(sparse, 10.0), torch.ones(64, 1))  # most tokens are nothing: no cap


def test_what_the_layers_are_told_is_capped_in_both_models_alike(model, ids):
    told = {}
    for cap in (None, 1e-3):
        take = lambda path, moments, crossed, cap=cap: told.update({cap: (moments, crossed)})  # noqa: E731
        in_lockstep(model, copy.deepcopy(model), PATHS[:1], lambda m, tokens=None: m(ids), take, "test", cap=cap)
    moments, crossed = told[1e-3]
    assert torch.allclose(moments, crossed, rtol=1e-4)  # the same model: Z is X
    assert float(moments.trace()) < 0.01 * float(told[None][0].trace())


def test_layers_that_read_the_same_are_told_the_same_objects():
    """Queries, keys and values, though each may round its inputs; what follows in the same memory is another."""
    layers = [torch.nn.Linear(600, 600, bias=False) for _ in range(4)]
    model = torch.nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)})
    x, told = torch.randn(64, 600, generator=torch.Generator().manual_seed(0)), []

    def run(model, tokens=None):
        given = x.clone()
        for layer in list(model.values())[:3]:
            layer(given)
        model["3"](given.mul_(2))

    model.forward = lambda: None
    in_lockstep(model, None, list(model), run, lambda path, moments, crossed: told.append(moments), "test")
    assert told[0] is told[1] is told[2]
    torch.testing.assert_close(told[3], 4 * told[0])
    torch.testing.assert_close(told[0], x.t() @ x)


def test_of_inputs_there_is_one_copy_in_each_model():
    """In FP32, from which moments are made, though tokens are capped; beside them a product takes one at most."""
    model = torch.nn.ModuleDict({"0": torch.nn.Linear(256, 8, bias=False)})
    x = torch.ones(1 << 17, 256, dtype=torch.bfloat16)

    def run(model, tokens=None):
        model["0"](x)

    def follow():
        in_lockstep(model, copy.deepcopy(model), ["0"], run, lambda *_: None, "test", cap=10.0)

    assert 1.9 < held_by(follow) / (4 * x.numel()) < 3.5


def test_tokens_are_weighed_some_at_a_time_as_at_once(monkeypatch):
    squared, square = [], torch.Tensor.square
    monkeypatch.setattr(torch.Tensor, "square", lambda part: squared.append(part.numel()) or square(part))
    x = torch.randn(3000, 80, generator=torch.Generator().manual_seed(0)).mul_(torch.arange(3000).unsqueeze(1))
    energy = (x * x).mean(1, keepdim=True)
    wanted = (energy.median() / energy).sqrt().clamp_max(1)
    assert torch.allclose(token_weights(x, 1.0), wanted, rtol=1e-6)
    assert max(squared) < x.numel() / 2

"""Layers of two models met side by side: what each is told, and where the passes end."""

import copy

import pytest
import torch

from abridged.errors import AbridgedError
from abridged.methods.lockstep import Inputs, in_lockstep, target

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

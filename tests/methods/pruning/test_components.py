"""The hidden width as principal components: what they are, and that a model in few directions loses nothing."""

import copy

import pytest
import torch
from torch import nn

from abridged import families
from abridged.families.layout import HIDDEN, layout_of
from abridged.methods import METHODS
from abridged.methods.pruning.attached import composed
from abridged.methods.transforms import hidden_moments, principal_components
from abridged.objectives.layers import narrowed
from pruned import MODELS, build, calibrate, outputs

#: Models of which no layer writes to the hidden width through a nonlinearity.
LINEAR = [name for name in MODELS if "masked" not in name]
WIDTH, RANK = 32, 12


@torch.no_grad()
def in_few_directions(name):
    """A model whose hidden states lie in RANK directions, none of them a unit's own, and the projection on them."""
    model = build(name)
    layout = layout_of(model, families.view(model))
    norms = [model.get_submodule(m.path) for m in layout.modules if m.part == "norm"]
    directions = torch.randn(WIDTH, RANK, generator=torch.Generator().manual_seed(3))
    if isinstance(norms[0], nn.LayerNorm):
        directions = directions - directions.mean(0)
    basis = torch.linalg.qr(directions)[0]
    projection = basis @ basis.t()
    for norm in norms:
        norm.weight.fill_(1.0)
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
    for module in layout.modules:
        target = model.get_submodule(module.path)
        if module.part == "norm":
            continue
        if module.rows.axis == HIDDEN:
            transposed = target.weight.shape[0] != module.rows.total or type(target).__name__ == "Conv1D"
            target.weight.copy_(target.weight @ projection if transposed else projection @ target.weight)
            if module.bias:
                target.bias.copy_(projection @ target.bias)
        elif isinstance(target, nn.Embedding):
            target.weight.copy_(target.weight @ projection)
    return model, layout


@pytest.mark.parametrize("name", LINEAR)
def test_components_are_orthonormal_and_keep_the_mean_apart(name):
    model = build(name)
    layout = layout_of(model, families.view(model))
    basis = principal_components(hidden_moments(model, layout, calibrate), torch.arange(0, WIDTH, 2)).matrix
    expected = torch.eye(WIDTH // 2)
    if any(isinstance(m, nn.LayerNorm) for m in model.modules()):
        expected = expected - 2 / WIDTH
        torch.testing.assert_close(basis.sum(0), torch.zeros(WIDTH // 2), atol=1e-5, rtol=0)
        torch.testing.assert_close(basis.sum(1), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.t() @ basis, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_a_model_in_few_directions_loses_nothing_with_components(name):
    """Half of the width holds all of the directions, but few of what single units show of them."""
    whole, layout = in_few_directions(name)
    wanted, distances = outputs(whole), {}
    budget = layout.parameters({**layout.full(), HIDDEN: WIDTH // 2}, layout.open_gates())
    for hidden in ("units", "components"):
        model = copy.deepcopy(whole)
        method = METHODS["prune"](
            budget={"parameters": budget}, masks="magnitude", structures=("hidden",), reconstruct=True, hidden=hidden
        )
        attached = method.build(model, families.view(model), calibrate)
        assert attached.finish().facts["prune"]["hidden"] == [WIDTH // 2, WIDTH]
        distances[hidden] = float((outputs(model) - wanted).square().mean() / wanted.var())
    assert distances["components"] < 0.02
    assert distances["components"] < 0.2 * distances["units"]


def test_a_head_behind_a_nonlinearity_keeps_single_units_and_says_so():
    model = build("bert-masked")
    method = METHODS["prune"](budget={"parameters": 0.5}, masks="magnitude", reconstruct=True, hidden="components")
    attached = method.build(model, families.view(model), calibrate)
    done = attached.finish()
    assert any("single units" in note for note in done.notes["prune"])
    assert done.hidden_units.dtype == torch.int64


def test_components_need_the_fit():
    with pytest.raises(ValueError, match="needs reconstruct: true"):
        METHODS["prune"](budget={"parameters": 0.5}, hidden="components")


def test_what_was_cut_twice_is_said_of_the_first_model():
    states = torch.randn(3, 5)
    picked, mixed, few = torch.tensor([0, 2, 4]), torch.randn(3, 2), torch.tensor([1])
    both = composed(picked, mixed, 5)
    torch.testing.assert_close(narrowed(states, both), states[:, picked] @ mixed)
    torch.testing.assert_close(narrowed(states, composed(both, few, 5)), states[:, picked] @ mixed[:, few])
    torch.testing.assert_close(narrowed(states, composed(picked, few, 5)), states[:, [2]])
    again = torch.randn(2, 1)
    torch.testing.assert_close(narrowed(states, composed(both, again, 5)), states[:, picked] @ mixed @ again)

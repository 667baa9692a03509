"""A rotation of the residual stream, merged into the weights, leaves what a model puts out as it was."""

import pytest
import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.layout import layout_of
from abridged.methods.transforms import fold_norms, rotate
from pruned import IDS, answer, build

WIDTH = 32


def rotation(keeps_mean=False):
    """A random orthogonal matrix; one that leaves the mean of the units where it is, on request."""
    draw = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))
    if not keeps_mean:
        return torch.linalg.qr(draw).Q
    along = torch.full((WIDTH, 1), WIDTH**-0.5)
    rest = torch.linalg.qr(torch.cat([along, draw[:, 1:]], 1)).Q[:, 1:]
    turned = rest @ torch.linalg.qr(torch.randn(WIDTH - 1, WIDTH - 1, generator=torch.Generator().manual_seed(8))).Q
    return along @ along.t() + turned @ rest.t()


def unlike(model):
    """Norms and biases that are no longer all alike."""
    with torch.no_grad():
        for module in layout_of(model, families.view(model)).modules:
            if module.norm is not None:
                norm = model.get_submodule(module.path)
                norm.weight.mul_(0.5 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(5)))
    return model


def test_a_rotation_changes_the_weights_and_not_the_logits():
    model = unlike(build("llama"))
    before, weight = answer(model), model.model.embed_tokens.weight.clone()
    q = rotation()
    rotate(model, families.view(model), q, {"input_ids": IDS})
    assert torch.allclose(answer(model), before, atol=1e-4)
    assert torch.allclose(model.model.embed_tokens.weight, weight @ q, atol=1e-5)
    torch.testing.assert_close(model.model.norm.weight.data, torch.ones(WIDTH))
    assert all(p.requires_grad for p in model.parameters())


def test_folded_norms_alone_change_nothing():
    model = unlike(build("llama"))
    before = answer(model)
    fold_norms(model, layout_of(model, families.view(model)), {"input_ids": IDS})
    assert torch.allclose(answer(model), before, atol=1e-5)


REFUSED = {
    "tied": ("llama-tied", False, "is tied to the embedding"),
    "mean": ("gpt2", False, "takes the mean of the units away"),
    "after": ("bert-tokens", True, "more than matrices read what"),
    "nonlinearity": ("bert-masked", True, "through a nonlinearity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_would_not_go_on_as_before_is_refused_and_left_alone(case):
    name, keeps_mean, message = REFUSED[case]
    model = unlike(build(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(AbridgedError, match=message):
        rotate(model, families.view(model), rotation(keeps_mean), {"input_ids": IDS})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_orthogonal_matrices_rotate():
    model = build("llama")
    with pytest.raises(AbridgedError, match="an orthogonal matrix of 32 rows"):
        rotate(model, families.view(model), 2 * rotation(), {"input_ids": IDS})

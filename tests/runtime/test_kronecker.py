"""Factored layers against the matrix that their factors multiply out to."""

import pytest
import torch
from torch import nn

from abridged.runtime.kronecker import (
    KroneckerEmbedding,
    KroneckerLinear,
    build_factored,
    factored_modules,
)
from abridged.storage.factors import Factors

SHAPES = [
    Factors((6, 12), (2, 1)),
    Factors((12, 6), (1, 2)),
    Factors((12, 3), (1, 4), rank=2),
    Factors((3, 12), (4, 1), rank=2),
    Factors((6, 6), (2, 2), rank=2),
    Factors((3, 4), (4, 3)),
    Factors((4, 3), (3, 4), rank=3),
    Factors((12, 1), (1, 12), rank=5),
    Factors((1, 12), (12, 1), rank=1),
    Factors((6, 6), (1, 2), fused=2),
    Factors((12, 1), (1, 40), rank=2),
]


def filled(module, dtype=torch.float64):
    torch.manual_seed(0)
    module = module.to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=dtype))
    return module


@pytest.mark.parametrize("training", [False, True], ids=["packed order", "training"])
@pytest.mark.parametrize("factors", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_the_matrix(factors, training):
    module = filled(build_factored(factors, False, nn.Parameter(torch.zeros(factors.rows)))).train(training)
    x = torch.randn(2, 5, factors.columns, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    y, expected = module(x), nn.functional.linear(x, module.dequantized(), module.bias)
    assert y.shape == (2, 5, factors.rows)
    assert torch.allclose(y, expected)
    weights = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("factors", SHAPES[:4], ids=str)
def test_its_weight_is_what_a_stock_layers_is(factors):
    module = filled(KroneckerLinear(factors))
    assert module.weight.shape == (module.out_features, module.in_features) == (factors.rows, factors.columns)
    assert module.weight.dtype == torch.float64
    assert torch.equal(module.weight.data, module.dequantized())
    assert module.half().weight.dtype == torch.float16


@pytest.mark.parametrize("factors", SHAPES[:4], ids=str)
def test_gradients_by_differences(factors):
    module = filled(KroneckerLinear(factors)).eval()
    x = torch.randn(2, factors.columns, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize("factors", [f for f in SHAPES if f.right[0] == 1 and f.fused == 1], ids=str)
def test_rows_are_looked_up_without_the_matrix(factors, monkeypatch):
    module = filled(KroneckerEmbedding(factors))
    module.embed_scale = 3.0
    expected = 3.0 * module.dequantized()
    monkeypatch.setattr(KroneckerEmbedding, "dequantized", None)
    ids = torch.tensor([[0, 3], [5, 0]])
    assert torch.allclose(module(ids), expected[ids])


@pytest.mark.parametrize("factors", [f for f in SHAPES if f.fused == 1], ids=str)
def test_a_head_is_read_as_inputs_and_weight(factors):
    head = filled(KroneckerLinear(factors)).eval()
    x = torch.randn(3, factors.columns, dtype=torch.float64)
    assert torch.allclose(head.prepared_inputs(x) @ head.prepared_weight().t(), head(x))
    if factors.right[0] == 1 and factors.rank * 2 <= factors.right[1]:
        assert head.prepared_weight().numel() < factors.rows * factors.columns


def test_fewer_operations_decide_which_factor_comes_first():
    for factors in SHAPES:
        (m1, n1), (m2, n2) = factors.left, factors.right
        left = factors.fused * factors.rank * (n2 * n1 * m1 + m1 * n2 * m2)
        right = factors.fused * factors.rank * (n1 * n2 * m2 + m2 * n1 * m1)
        assert factors.operations == min(left, right) or n2 == m2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_answers_in_its_type(dtype):
    for factors in SHAPES:
        module = filled(build_factored(factors, False, nn.Parameter(torch.zeros(factors.rows))), dtype).eval()
        assert module(torch.randn(2, factors.columns, dtype=dtype)).dtype == dtype


def test_autocast_multiplies_in_bf16():
    module = filled(KroneckerLinear(Factors((12, 6), (1, 2))), torch.float32)
    x = torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), module(x), atol=0.2)


@pytest.mark.parametrize("rank", [1, 2])
def test_embeddings_keep_their_type_under_autocast(rank):
    module = filled(KroneckerEmbedding(Factors((12, 6), (1, 2), rank)), torch.float32)
    ids, expected = torch.arange(12), module.dequantized()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = module(ids)
    torch.testing.assert_close(rows, expected)


def test_factored_modules_are_found_once():
    model = nn.ModuleDict({"a": build_factored(SHAPES[9], False), "b": nn.Linear(2, 2)})
    assert list(factored_modules(model)) == ["a"]

"""The nearest sum of Kronecker products: against a full SVD, against other pairs, and against the matrix itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abridged.methods.kronecker.decomposition import nearest, random, rearranged
from abridged.runtime.kronecker import layout, multiply_out
from abridged.storage.factors import Factors

SHAPES = [
    Factors((6, 4), (2, 3)),
    Factors((12, 6), (1, 2)),
    Factors((6, 12), (2, 1)),
    Factors((3, 2), (4, 6)),
    Factors((3, 2), (4, 6), rank=3),
    Factors((12, 1), (1, 12), rank=5),
]


def product(left, right):
    """Σ A_r ⊗ B_r by torch's own Kronecker product."""
    return sum(torch.kron(a, b) for a, b in zip(left, right, strict=True))


def matrix(rows=12, columns=12, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factors", SHAPES, ids=str)
def test_error_is_that_of_the_truncated_svd_and_what_the_product_has(factors):
    weight = matrix()
    left, right, error = nearest(weight, factors)
    lost = torch.linalg.svdvals(rearranged(weight, factors))[factors.rank :].norm() / weight.norm()
    assert (product(left, right) - weight).norm() / weight.norm() == pytest.approx(float(lost), rel=1e-6)
    assert error == pytest.approx(float(lost), rel=1e-6)


@pytest.mark.parametrize("factors", SHAPES[:4], ids=str)
def test_no_random_pair_comes_nearer(factors):
    weight = matrix()
    _, _, error = nearest(weight, factors)
    best = nearest(weight, factors)
    draw = torch.Generator().manual_seed(1)
    for attempt in range(50):
        if attempt % 2:
            a, b = (part + 0.1 * torch.randn(part.shape, generator=draw, dtype=part.dtype) for part in best[:2])
        else:
            a, b, _ = random(weight, factors, draw)
        other = product(a, b)
        scale = (other * weight).sum() / other.square().sum()  # the best that this pair can do
        assert (scale * other - weight).norm() / weight.norm() >= error


@settings(max_examples=30, deadline=None)
@given(m1=st.integers(1, 5), n1=st.integers(1, 5), m2=st.integers(1, 5), n2=st.integers(1, 5), seed=st.integers(0, 99))
def test_full_rank_reproduces_the_matrix(m1, n1, m2, n2, seed):
    factors = Factors((m1, n1), (m2, n2), rank=min(m1 * n1, m2 * n2))
    weight = matrix(m1 * m2, n1 * n2, seed)
    left, right, error = nearest(weight, factors)
    assert torch.allclose(product(left, right), weight, atol=1e-6)
    assert error < 1e-6


def test_a_product_is_found_again():
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(1, 6, 4, generator=draw), torch.randn(1, 2, 3, generator=draw)
    left, right, error = nearest(product(a, b), Factors((6, 4), (2, 3)))
    assert torch.allclose(product(left, right), product(a, b), atol=1e-5)
    assert error < 1e-3


def test_a_matrix_of_zeros_gives_zeros():
    left, right, error = nearest(torch.zeros(8, 8), Factors((4, 4), (2, 2), rank=2))
    assert torch.equal(product(left, right), torch.zeros(8, 8))
    assert error == 0


def test_a_small_factor_has_entries_of_the_size_of_one():
    weight = 0.02 * torch.randn(64, 64)
    left, right, _ = nearest(weight, Factors((64, 32), (1, 2)))
    assert right.square().mean().sqrt() == pytest.approx(1.0, rel=1e-4)
    assert left.square().mean().sqrt() < 0.04


def test_terms_are_of_like_size_however_fast_the_singular_values_fall():
    falling = torch.linalg.qr(torch.randn(64, 64)).Q * 0.8 ** torch.arange(64.0)
    weight = falling @ torch.linalg.qr(torch.randn(64, 64)).Q
    for part in nearest(weight, Factors((64, 1), (1, 64), rank=32))[:2]:
        sizes = part.flatten(1).norm(dim=1)
        assert sizes.max() < 4 * sizes.min()


@pytest.mark.parametrize("factors", SHAPES, ids=str)
def test_children_hold_the_terms_and_multiply_out_to_the_product(factors):
    left, right, _ = nearest(matrix(), factors)
    children = layout(factors, left, right)
    assert [tuple(child.shape) for child in children] == [factors.left_weight, factors.right_weight]
    assert torch.allclose(multiply_out(factors, *children), product(left, right))

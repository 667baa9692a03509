"""Factors that are nearest on inputs: exact where they can be, and never worse than the nearest to the weights."""

import pytest
import torch

from abridged.methods.kronecker import decomposition
from abridged.methods.kronecker.decomposition import nearest, nearest_outputs, product
from abridged.storage.factors import Factors

ROWS = [Factors((6, 12), (2, 1)), Factors((3, 12), (4, 1), rank=2)]
LOW_RANK = [Factors((12, 1), (1, 12), rank=5)]
COLUMNS = [Factors((12, 6), (1, 2)), Factors((12, 3), (1, 4), rank=2), Factors((24, 6), (1, 2))]
GENERAL = [Factors((6, 4), (2, 3)), Factors((3, 2), (4, 6), rank=3)]
ALL = [*ROWS, *LOW_RANK, *COLUMNS, *GENERAL]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight_of(factors, seed=0):
    return draw(factors.rows, factors.columns, seed=seed)


def moments_of(columns, seed=1):
    """XᵀX of inputs some of which vary far more than others, and together."""
    x = draw(40 * columns, columns, seed=seed) @ (
        draw(columns, columns, seed=seed + 1) * torch.logspace(0, -1, columns)
    )
    return x.t() @ x


def pair(factors):
    return [draw(factors.rank, *shape, seed=3) for shape in (factors.left, factors.right)]


def lost(weight, found, moments):
    """‖(W − P) L‖ / ‖W‖ for moments with a mean of 1 on the diagonal."""
    rest = weight - found
    return ((rest @ moments * rest).sum() / moments.diagonal().mean()).sqrt() / weight.norm()


@pytest.mark.parametrize("factors", ALL, ids=str)
def test_inputs_that_vary_alike_give_the_nearest(factors):
    weight = weight_of(factors)
    left, right, error = nearest_outputs(weight, factors, 3 * torch.eye(factors.columns).double())
    expected, other, least = nearest(weight, factors)
    torch.testing.assert_close(product(factors, left, right), product(factors, expected, other), atol=2e-2, rtol=0)
    assert error == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("factors", ALL, ids=str)
def test_the_error_is_what_the_product_has_and_below_that_of_the_nearest(factors):
    weight, moments = weight_of(factors), moments_of(factors.columns)
    left, right, error = nearest_outputs(weight, factors, moments)
    assert error == pytest.approx(float(lost(weight, product(factors, left, right), moments)), rel=1e-5)
    assert error < lost(weight, product(factors, *nearest(weight, factors)[:2]), moments)


@pytest.mark.parametrize("factors", ALL, ids=str)
def test_no_random_change_comes_nearer(factors):
    weight, moments = weight_of(factors), moments_of(factors.columns)
    left, right, error = nearest_outputs(weight, factors, moments)
    slack = 1 if factors in ROWS + LOW_RANK else 1 - 1e-2  # turns end before they are through
    for seed in range(15):
        size = 10.0 ** -(seed % 3)
        a = left + size * left.std() * draw(*left.shape, seed=2 * seed)
        b = right + size * right.std() * draw(*right.shape, seed=2 * seed + 1)
        other = product(factors, a, b)
        scale = (other @ moments * weight).sum() / (other @ moments * other).sum()  # the best that this pair can do
        assert lost(weight, scale * other, moments) >= slack * error


@pytest.mark.parametrize("factors", [*ROWS, *LOW_RANK], ids=str)
def test_where_one_factor_has_all_columns_descent_ends_no_lower(factors):
    weight, moments = weight_of(factors), moments_of(factors.columns)
    _, _, error = nearest_outputs(weight, factors, moments)
    a, b = (part.requires_grad_() for part in pair(factors))
    descent = torch.optim.LBFGS([a, b], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        squared = lost(weight, product(factors, a, b), moments) ** 2
        squared.backward()
        return squared

    descent.step(closure)
    assert error * (1 - 1e-6) < lost(weight, product(factors, a, b).detach(), moments) < 1.3 * error


@pytest.mark.parametrize("factors", [*COLUMNS, *GENERAL], ids=str)
def test_no_turn_raises_the_error(factors, monkeypatch):
    weight, moments = weight_of(factors), moments_of(factors.columns)
    errors = [float(lost(weight, product(factors, *nearest(weight, factors)[:2]), moments))]
    for turns in range(6):
        monkeypatch.setattr(decomposition, "_TURNS", turns)
        errors.append(nearest_outputs(weight, factors, moments)[2])
    assert all(after <= before * (1 + 1e-9) for before, after in zip(errors, errors[1:], strict=False))


def test_a_matrix_of_many_rows_is_factored_as_its_square_root():
    factors = Factors((40, 4), (1, 3), rank=2)
    weight, moments = weight_of(factors), moments_of(12)
    found = decomposition.in_turns(weight, factors, moments)
    expected = product(factors, *decomposition._turns(weight, factors, moments))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("factors", [ROWS[1], LOW_RANK[0], COLUMNS[1], GENERAL[1]], ids=str)
def test_a_product_of_fewer_terms_is_found_again_and_zeros_stay_zeros(factors):
    moments = moments_of(factors.columns)
    one = product(factors, *(part * (torch.arange(factors.rank) < 1)[:, None, None] for part in pair(factors)))
    left, right, error = nearest_outputs(one, factors, moments)
    assert error < 1e-5
    torch.testing.assert_close(product(factors, left, right), one, atol=1e-4, rtol=1e-4)
    left, right, error = nearest_outputs(torch.zeros(factors.rows, factors.columns), factors, moments)
    assert error == 0
    assert not product(factors, left, right).any()


def test_factors_have_the_sizes_of_the_nearest():
    factors, generator = Factors((64, 32), (1, 2)), torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(64, 64, generator=generator)
    left, right, _ = nearest_outputs(weight, factors, moments_of(64))
    assert right.square().mean().sqrt() == pytest.approx(1.0, rel=1e-4)
    assert left.square().mean().sqrt() < 0.1
    assert left.dtype == right.dtype == torch.float32

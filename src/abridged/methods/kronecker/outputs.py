"""The sum of Kronecker products whose outputs are nearest to a matrix's own, on inputs with known second moments.

‖(W − ΣA⊗B) L‖ counts for inputs with XᵀX = C = L Lᵀ. Where one factor has all the columns, that is a nearest sum again,
to W L: (A ⊗ B) L is A ⊗ (B L), or (A L) ⊗ B. Otherwise all A are found in closed form from all B, and all B from all A,
in turns, beginning with the nearest to W itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abridged.methods.kronecker.decomposition import gram, nearest, rearranged
from abridged.runtime.factors import Factors
from abridged.runtime.kronecker import layout, multiply_out

#: Turns of A and B at most, and the part of the error that the last but one must at least have taken off.
_TURNS = 50
_GAIN = 1e-3
#: Added to the diagonal of the normal equations, of its mean: terms may depend on each other.
_RIDGE = 1e-10


@torch.no_grad()
def nearest_outputs(weight: Tensor, factors: Factors, moments: Tensor) -> tuple[Tensor, Tensor, float]:
    """The A and B, of sizes as `nearest` gives them, with the least ‖(W − ΣA⊗B) L‖ / ‖W‖ found, and that.

    `moments` (columns, columns) in FP64 are brought to a mean of 1 on the diagonal: inputs that vary alike and
    independently give what `nearest` does.
    """
    moments = moments / moments.diagonal().mean()
    root = torch.linalg.cholesky(moments).to(weight.dtype)
    if 1 in (factors.left[1], factors.right[1]):
        found = product(factors, *nearest(weight @ root, factors)[:2])
        found = torch.linalg.solve_triangular(root, found, upper=False, left=False)
    else:
        found = in_turns(weight, factors, moments)
    left, right, _ = nearest(found, factors)
    error = float(((weight - found) @ root).norm() / weight.norm().clamp_min(1e-30))
    return left, right, error


def product(factors: Factors, left: Tensor, right: Tensor) -> Tensor:
    """ΣA⊗B (rows, columns) of the terms A (rank, m1, n1) and B (rank, m2, n2) of one block."""
    return multiply_out(factors, *layout(factors, left, right))


def in_turns(weight: Tensor, factors: Factors, moments: Tensor) -> Tensor:
    """ΣA⊗B (rows, columns) with A and B found in turns.

    Where B is a row it depends on WᵀW alone, and the sum is W times a matrix: a vocabulary's rows are met only once.
    """
    columns = weight.shape[1]
    if factors.right[0] > 1 or len(weight) <= columns:
        return product(factors, *_turns(weight.double(), factors, moments)).to(weight.dtype)
    small = replace(factors, left=(columns, factors.left[1]))
    values, vectors = torch.linalg.eigh(gram(weight))
    _, right = _turns((vectors * values.clamp_min(0).sqrt()).t(), small, moments)
    left = _solved(rearranged(moments, small), right, _by_factor(moments, small))
    return weight @ product(small, left, right).to(weight.dtype)


def _turns(weight: Tensor, factors: Factors, moments: Tensor) -> tuple[Tensor, Tensor]:
    """A and B in FP64, each in its turn the best beside the other, until another turn gains little."""
    outputs = weight @ moments
    against, by_factor = rearranged(outputs, factors), _by_factor(moments, factors)
    _, right, _ = nearest(weight, factors)
    left = _solved(against, right, by_factor)
    lost = float("inf")
    for _ in range(_TURNS):
        # ‖(W − P) L‖² = ⟨W − P, W C⟩ where A is the best beside B
        before, lost = lost, float(((weight - product(factors, left, right)) * outputs).sum())
        if lost > (1 - _GAIN) ** 2 * before:
            break
        right = _solved(against.t(), left, by_factor.permute(1, 0, 3, 2))
        left = _solved(against, right, by_factor)
    return left, right


def _by_factor(moments: Tensor, factors: Factors) -> Tensor:
    """Second moments (n1, n2, n1, n2): a column of W is one of A's and one of B's."""
    columns = (factors.left[1], factors.right[1])
    return moments.reshape(columns * 2)


def _solved(against: Tensor, other: Tensor, moments: Tensor) -> Tensor:
    """The best factors (rank, m, n) of one side beside those of the other (rank, m', n').

    `against` (m·n, m'·n') is the rearranged W C, and `moments` (n, n', n, n') are C.
    """
    rank, own = len(other), len(moments)
    grams = torch.einsum("rkl,skm->rlsm", other, other)
    normal = torch.einsum("jlpm,rlsm->jrps", moments, grams).reshape(own * rank, own * rank)
    normal.diagonal().add_(_RIDGE * normal.diagonal().mean().clamp_min(1e-30))
    wanted = (against @ other.flatten(1).t()).reshape(-1, own * rank)
    return torch.linalg.solve(normal, wanted.t()).t().reshape(-1, own, rank).permute(2, 0, 1)

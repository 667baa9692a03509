"""The nearest sum of Kronecker products to a matrix (Van Loan and Pitsianis, 1993).

The blocks of W that A's entries scale, laid out as rows of R (m1·n1, m2·n2), turn A ⊗ B into an outer product of
vectors. So the best A and B are R's leading singular vectors, and ‖W − ΣA⊗B‖ is what the others hold.

Where outputs on inputs with known second moments XᵀX = C = L Lᵀ are to be nearest, ‖(W − ΣA⊗B) L‖ counts. Where one
factor has all the columns, that is a nearest sum again, to W L: (A ⊗ B) L is A ⊗ (B L), or (A L) ⊗ B. Otherwise all A
are found in closed form from all B, and all B from all A, in turns, beginning with the nearest to W itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from abridged.runtime.kronecker import layout, multiply_out
from abridged.storage.factors import Factors

_NUMBERS = 1 << 21  #: of R that are worked on at once in FP64
_SMALL = 8  #: times smaller than the other: a factor through which the other learns as the matrix did


def rearranged(weight: Tensor, factors: Factors) -> Tensor:
    """R (m1·n1, m2·n2) of a weight (rows, columns): row (i, j) is the block that A's entry (i, j) scales."""
    (m1, n1), (m2, n2) = factors.left, factors.right
    return weight.reshape(m1, m2, n1, n2).permute(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)


@torch.no_grad()
def nearest(weight: Tensor, factors: Factors) -> tuple[Tensor, Tensor, float]:
    """The A (rank, m1, n1) and B (rank, m2, n2) with the least ‖W − ΣA⊗B‖, and that over ‖W‖.

    The singular vectors come from the smaller of RᵀR and RRᵀ, in FP64. A small B has entries of the size of 1/√rank and
    A those of the size of W, so that a learning rate means the same for A as it did for W: a step of all terms moves W
    by as much. Factors of like size share the singular values evenly.

    An orthogonal mixture of the terms has the same sum. They are mixed at random, always in the same way, so that all
    entries of a factor are of like size: as they come, each term is smaller than the one before, and a few bits that
    hold the first would hold nothing of the last.
    """
    matrix = rearranged(weight.detach(), factors)
    wide = matrix.shape[0] < matrix.shape[1]
    if wide:
        matrix = matrix.t()
    squares = gram(matrix)
    total = squares.trace()
    values, vectors = torch.linalg.eigh(squares)
    values, vectors = values.flip(0)[: factors.rank].clamp_min(0), vectors.flip(1)[:, : factors.rank]
    error = float((1 - values.sum() / total).clamp(0, 1).sqrt()) if total > 0 else 0.0
    # `vectors` are orthonormal; those of the longer side come out times the singular values σ
    longer = torch.cat([(part.double() @ vectors).to(weight.dtype) for part in _parts(matrix)])
    sigma = values.sqrt().clamp_min(1e-30)
    left, right = (vectors * sigma, longer / sigma) if wide else (longer, vectors)
    small = len(left) >= _SMALL * len(right)
    share = torch.full_like(sigma, (len(right) / factors.rank) ** 0.5) if small else sigma.sqrt()
    left, right = (left / share).to(weight.dtype).t(), (right * share).to(weight.dtype).t()
    mixture = _orthogonal(factors.rank).to(left)
    left, right = mixture @ left, mixture @ right
    return left.reshape(factors.rank, *factors.left), right.reshape(factors.rank, *factors.right), error


def _orthogonal(size: int) -> Tensor:
    """A random orthogonal matrix (size, size) in FP64, always the same one; [[1]] for a size of 1."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    numbers = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(numbers).Q


def _parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """The rows of a matrix, so many at once that their copy in FP64 is small."""
    parts: tuple[Tensor, ...] = matrix.split(max(1, _NUMBERS // matrix.shape[1]))
    return parts


def gram(matrix: Tensor) -> Tensor:
    """RᵀR in FP64, some rows of R at a time."""
    squares = matrix.new_zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for part in _parts(matrix):
        part = part.double()
        squares.addmm_(part.t(), part)
    return squares


@torch.no_grad()
def random(weight: Tensor, factors: Factors, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, float]:
    """Random A and B whose sum of products has entries of the size of W's: what `nearest` is measured against."""
    size = weight.detach().square().mean().sqrt().item()
    left = torch.randn((factors.rank, *factors.left), generator=generator, device=weight.device, dtype=weight.dtype)
    right = torch.randn((factors.rank, *factors.right), generator=generator, device=weight.device, dtype=weight.dtype)
    right /= (factors.rank * right.square().mean((1, 2), keepdim=True)).sqrt()
    left *= size
    approximation = torch.einsum("rij,rkl->ikjl", left, right).reshape(weight.shape)
    error = float((weight - approximation).norm() / weight.norm().clamp_min(1e-30))
    return left, right, error


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

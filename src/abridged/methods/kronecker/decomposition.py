"""The nearest sum of Kronecker products to a matrix (Van Loan and Pitsianis, 1993).

The blocks of W that A's entries scale, laid out as rows of R (m1·n1, m2·n2), turn A ⊗ B into an outer product of
vectors. So the best A and B are R's leading singular vectors, and ‖W − ΣA⊗B‖ is what the others hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.runtime.factors import Factors

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

"""Linear layers and embeddings made of Kronecker factors, W = Σ A_r ⊗ B_r: two small products, never the matrix.

(A ⊗ B) x = vec(A X Bᵀ) with x read as X (n1, n2), so that one factor after the other meets the input. The factors are
the weights of two ordinary children, `left` (A) and `right` (B): a later method that swaps linear layers by their path
finds them, and a checkpoint stores them as it stores any matrix. A product of low rank, W = U V, is the special case
of factors (m, 1) and (1, n).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from abridged.runtime.weight import EmbeddingSizes, LinearSizes, StandIn
from abridged.storage.factors import Factors

#: Entries of a right factor up to which it is applied number by number: matrix products so thin are slow.
FEW = 16


def layout(factors: Factors, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The children's weights of the terms A (rank, m1, n1) and B (rank, m2, n2) of one block."""
    if factors.left_first:
        left, right = left.permute(1, 0, 2), right.permute(1, 2, 0)
    else:
        left, right = left.permute(1, 2, 0), right.permute(1, 0, 2)
    return left.reshape(factors.left_weight), right.reshape(factors.right_weight)


def multiply_out(factors: Factors, left: Tensor, right: Tensor) -> Tensor:
    """The matrix (rows, columns) of one block from the children's weights."""
    (m1, n1), (m2, n2), rank = factors.left, factors.right, factors.rank
    if factors.left_first:
        a, b = left.view(m1, rank, n1).permute(0, 2, 1), right.view(m2, n2, rank)
    else:
        a, b = left.view(m1, n1, rank), right.view(m2, rank, n2).permute(0, 2, 1)
    product = a.reshape(m1 * n1, rank) @ b.reshape(m2 * n2, rank).t()
    return product.view(m1, n1, m2, n2).permute(0, 2, 1, 3).reshape(m1 * m2, n1 * n2)


def weight_of(module: Any) -> Tensor:
    """The weight (rows, columns) of a stock, a quantised or a packed layer."""
    for name in ("dequantized", "prepared_weight"):
        if hasattr(module, name):
            weight: Tensor = getattr(module, name)()
            return weight
    weight = module.source() if hasattr(module, "source") else module.weight
    return weight


class Factored(StandIn):
    """What is factored, by its `factors`."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.factors = factors

    @property
    def rows(self) -> int:
        """Output features, or vocabulary entries."""
        return self.factors.rows

    @property
    def columns(self) -> int:
        """Input features, or the width of an embedding."""
        return self.factors.columns

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """(path from here, module that holds `left` and `right`) of every block."""
        yield "", self

    def like(self) -> tuple[torch.dtype, torch.device]:
        _, pair = next(iter(self.pairs()))
        return pair.left.weight.dtype, pair.left.weight.device

    def dequantized(self) -> Tensor:
        """The matrix (rows, columns) multiplied out, in FP32 where it is packed."""
        return torch.cat([multiply_out(p.factors, weight_of(p.left), weight_of(p.right)) for _, p in self.pairs()])

    def extra_repr(self) -> str:
        return str(self.factors)


class KroneckerLinear(LinearSizes, Factored):
    """y = x (Σ A_r ⊗ B_r)ᵀ + bias."""

    bias: nn.Parameter | None

    def __init__(
        self, factors: Factors, bias: nn.Parameter | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__(factors)
        rows, columns = factors.left_weight
        self.left: nn.Module = nn.Linear(columns, rows, bias=False, device=device)
        rows, columns = factors.right_weight
        self.right: nn.Module = nn.Linear(columns, rows, bias=False, device=device)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., rows)."""
        if self._builds():
            return nn.functional.linear(x, self.dequantized(), self.bias)
        y = self._left_first(x) if self.factors.left_first else self._right_first(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _builds(self) -> bool:
        """Whether W is made at each step of training: where both products together take more than one with W."""
        plain = type(self.left) is nn.Linear and type(self.right) is nn.Linear
        return self.training and plain and self.factors.operations > self.factors.rows * self.factors.columns

    def _right_first(self, x: Tensor) -> Tensor:
        (m1, n1), (m2, _), rank = self.factors.left, self.factors.right, self.factors.rank
        y = self._combined(x)
        if m2 == 1:
            return self.left(y)
        y = y.unflatten(-1, (n1, m2, rank)).transpose(-3, -2).flatten(-2)  # (..., m2, n1 * rank)
        y = self.left(y)
        return y.transpose(-2, -1).reshape(*x.shape[:-1], m1 * m2)

    def _combined(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., n1 * m2 * rank): B of each run of n2 inputs."""
        n1, n2 = self.factors.left[1], self.factors.right[1]
        if self._is_thin():
            weight = self.right.weight.to(x.dtype)[0]  # type: ignore[index]
            if x.dtype != torch.float32:  # elementwise arithmetic on every n2-th half is slow on CPUs
                return x.unflatten(-1, (n1, n2)) @ weight
            y = x[..., ::n2] * weight[0]
            for j in range(1, n2):
                y = torch.addcmul(y, x[..., j::n2], weight[j])
            return y
        return self.right(x.unflatten(-1, (n1, n2))).flatten(-2)

    def _left_first(self, x: Tensor) -> Tensor:
        (m1, n1), n2, rank = self.factors.left, self.factors.right[1], self.factors.rank
        if n2 == 1:
            y = self.left(x).unflatten(-1, (m1, rank))
            if self._is_thin():
                weight = self.right.weight.to(y.dtype)[:, 0]  # type: ignore[index]
                return torch.stack([y[..., 0] * number for number in weight], -1).flatten(-2)
            return self.right(y).flatten(-2)
        y = self.left(x.unflatten(-1, (n1, n2)).transpose(-2, -1))  # (..., n2, m1 * rank)
        y = y.unflatten(-1, (m1, rank)).transpose(-3, -2).flatten(-2)  # (..., m1, n2 * rank)
        return self.right(y).flatten(-2)

    def _is_thin(self) -> bool:
        """Whether B is a row or a column of a few numbers in full precision."""
        rows, columns = self.factors.right_weight
        return min(rows, columns) == 1 and rows * columns <= FEW and type(self.right) is nn.Linear

    # What losses over a vocabulary ask of a head: where B is a row, A alone is the matrix that they multiply by.

    def prepared_inputs(self, x: Tensor) -> Tensor:
        """x (..., columns) as it meets `prepared_weight`."""
        if self.factors.left_first or self.factors.right[0] != 1:
            return x
        y = self._combined(x)
        prepare = getattr(self.left, "prepared_inputs", None)
        return y if prepare is None else prepare(y)

    def prepared_weight(self) -> Tensor:
        """A (rows, columns of A * rank) where B is a row, else the matrix multiplied out."""
        if self.factors.left_first or self.factors.right[0] != 1:
            return self.dequantized()
        return weight_of(self.left)


class KroneckerBlocks(LinearSizes, Factored):
    """Several factored matrices that read the same input, their outputs side by side: fused Q, K and V."""

    bias: nn.Parameter | None

    def __init__(
        self, factors: Factors, bias: nn.Parameter | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__(factors)
        one = Factors(factors.left, factors.right, factors.rank)
        self.blocks = nn.ModuleList(KroneckerLinear(one, device=device) for _ in range(factors.fused))
        self.register_parameter("bias", bias)

    def pairs(self) -> Iterator[tuple[str, Any]]:
        for index, block in enumerate(self.blocks):
            yield f"blocks.{index}", block

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., rows)."""
        y = torch.cat([block(x) for block in self.blocks], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class KroneckerEmbedding(EmbeddingSizes, Factored):
    """Rows of Σ A_r ⊗ B_r with B a row: a token costs one row of A. The result is multiplied by `embed_scale`."""

    def __init__(self, factors: Factors, device: torch.device | str | None = None) -> None:
        super().__init__(factors)
        rows, columns = factors.left_weight
        self.left: nn.Module = nn.Embedding(rows, columns, device=device)
        rows, columns = factors.right_weight
        self.right: nn.Module = nn.Linear(columns, rows, bias=False, device=device)  # holds B as a tied head does

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) integers to (..., columns)."""
        rows = self.left(ids)
        terms = rows.unflatten(-1, (self.factors.left[1], self.factors.rank))
        weight = weight_of(self.right).to(rows.dtype)
        with torch.autocast(rows.device.type, enabled=False):  # stock embeddings stay in their own type, too
            y = (terms * weight if self.factors.rank == 1 else terms @ weight).flatten(-2)
        return y if self.embed_scale == 1.0 else y * self.embed_scale


def build_factored(factors: Factors, embedding: bool, bias: nn.Parameter | None = None) -> Any:
    """An empty module for these factors, on the default device."""
    if embedding:
        return KroneckerEmbedding(factors)
    return (KroneckerLinear if factors.fused == 1 else KroneckerBlocks)(factors, bias)


def factored_modules(model: nn.Module) -> dict[str, Factored]:
    """The factored modules of a model by path; not the blocks within one."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Factored)}
    inner = {f"{name}.{path}" for name, module in found.items() for path, _ in module.pairs() if path}
    return {name: module for name, module in found.items() if name not in inner}

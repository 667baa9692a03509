"""The shapes of Kronecker factors. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Factors:
    """The shapes of W (rows, columns) = Σ A_r (left) ⊗ B_r (right); of `fused` such matrices below one another."""

    left: tuple[int, int]
    right: tuple[int, int]
    rank: int = 1
    fused: int = 1

    @property
    def rows(self) -> int:
        return self.fused * self.left[0] * self.right[0]

    @property
    def columns(self) -> int:
        return self.left[1] * self.right[1]

    @property
    def left_first(self) -> bool:
        """Whether A meets the input before B: the order of fewer operations."""
        return self.right[1] < self.right[0]

    @property
    def left_weight(self) -> tuple[int, int]:
        """Shape of the left child's weight: terms are columns next to each other, or rows where A comes first."""
        rows, columns = self.left
        return (rows * self.rank, columns) if self.left_first else (rows, columns * self.rank)

    @property
    def right_weight(self) -> tuple[int, int]:
        """Shape of the right child's weight."""
        rows, columns = self.right
        return (rows, columns * self.rank) if self.left_first else (rows * self.rank, columns)

    @property
    def parameters(self) -> int:
        return self.fused * self.rank * (self.left[0] * self.left[1] + self.right[0] * self.right[1])

    @property
    def operations(self) -> int:
        """Multiplications for one token."""
        (m1, n1), (m2, n2) = self.left, self.right
        each = n2 * n1 * m1 + m1 * n2 * m2 if self.left_first else n1 * n2 * m2 + m2 * n1 * m1
        return self.fused * self.rank * each

    def __str__(self) -> str:
        (m1, n1), (m2, n2) = self.left, self.right
        terms = "" if self.rank == 1 else f", {self.rank} terms"
        return f"{m1}x{n1} ⊗ {m2}x{n2}{terms}"

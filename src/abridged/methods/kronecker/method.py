"""Kronecker decomposition as a method of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from abridged.methods.base import Method

if TYPE_CHECKING:
    from torch import nn

    from abridged.methods.base import Calibrate

PARTS = ("embedding", "head", "attention", "ffn", "pooler")


class Kronecker(Method):
    """Matrices as sums of Kronecker products (KnGPT2: Edalati et al., ACL 2022, arXiv 2110.08152, section 3).

    W ≈ Σ A_r ⊗ B_r, each pair the nearest to the weights at the start, then trained. The result is made of ordinary
    matrices, which a method after this one can make smaller still.
    """

    untrained_name: ClassVar[str] = "nearest factors"

    factor: float = Field(default=2.0, gt=1, description="how many times fewer parameters a factored matrix has")
    rank: int = Field(
        default=1, ge=1, description="products that are summed; B grows with their number, so that the factor holds"
    )
    layers: Literal["all", "odd", "even"] | list[int] = Field(
        default="all", description="layers whose matrices are factored, counted from 0; odd is 1, 3, 5 …"
    )
    matrices: list[str] = Field(
        default=["embedding", "attention", "ffn"],
        description="what is factored: embedding (with a head tied to it), head, attention, ffn, pooler, or patterns "
        "of module paths such as '*.c_fc'",
    )
    form: Literal["nearest", "columns", "rows", "low_rank"] = Field(
        default="nearest",
        description="columns: B is a row of numbers, which combines neighbouring inputs; rows: B is a column, which "
        "spreads outputs; nearest: the one of the two that comes nearer to the weights; low_rank: a product of two "
        "thin matrices instead (truncated SVD). Embedding and head are always factored by columns, but for low_rank",
    )
    shapes: dict[str, tuple[int, int]] = Field(
        default_factory=dict,
        description="shapes of B given for matrices by pattern of their path, such as {'*.c_fc': [4, 2]}; they "
        "take the place of factor and form there",
    )
    initialization: Literal["nearest", "inputs", "random"] = Field(
        default="nearest",
        description="where factors start: nearest to the weights; inputs: where the outputs on some of the data are "
        "nearest to the model's own, layer after layer; or at random",
    )

    @model_validator(mode="after")
    def _check(self) -> Kronecker:
        if any(size < 1 for shape in self.shapes.values() for size in shape):
            raise ValueError("shapes are of positive sizes")
        if not self.matrices:
            raise ValueError("matrices must name something to factor")
        if self.form == "low_rank" and self.rank != 1:
            raise ValueError("form low_rank finds its rank from the factor: leave rank at 1")
        return self

    def prepare(self, model: nn.Module, anatomy: Any, calibrate: Calibrate) -> None:
        """Swap the matrices asked for by factored ones; those factored already in the same way stay as they are.

        Raises AbridgedError for shapes that do not divide a matrix, a rank above the maximum, a layer or path that the
        model does not have, a head asked for without the embedding that it is tied to, weights or inputs that are not
        finite, and matrices that another method has changed before.
        """
        from abridged.methods.kronecker.prepare import prepare

        prepare(model, anatomy, calibrate, self)

    def untrained(self) -> Kronecker:
        """The nearest factors to the weights."""
        return self.model_copy(update={"initialization": "nearest"})

"""Kronecker decomposition as a method of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from abridged.methods.base import Method, Needs, Pass

if TYPE_CHECKING:
    from abridged.families import View

PARTS = ("embedding", "head", "attention", "ffn", "pooler")


class Kronecker(Method):
    """Matrices as sums of Kronecker products (KnGPT2: Edalati et al., ACL 2022, arXiv 2110.08152, section 3).

    W ≈ Σ A_r ⊗ B_r, each pair the nearest to the weights at the start, then trained. The result is made of ordinary
    matrices, which a method after this one can make smaller still.
    """

    name: ClassVar[str] = "kronecker"
    attached: ClassVar[str] = "abridged.methods.kronecker.attached:Factoring"
    untrained_name: ClassVar[str] = "nearest factors"
    by_parts: ClassVar[bool] = True

    factor: float = Field(default=2.0, gt=1, description="how many times fewer parameters a factored matrix has")
    factors: dict[str, Annotated[float, Field(gt=1)]] = Field(
        default_factory=dict,
        description="factors of their own for matrices by part or pattern of their path, such as {embedding: 4}",
    )
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

    @property
    def needs(self) -> Needs:
        """Inputs, where factors start by them."""
        return "inputs" if self.initialization == "inputs" else "nothing"

    @property
    def passes(self) -> frozenset[Pass]:
        return frozenset() if self.needs == "nothing" else frozenset({"many"})

    def reaches(self, layer: int | None) -> bool:
        """Whether matrices of a layer are factored; None is outside of the layers."""
        if layer is None or self.layers == "all":
            return True
        return layer in self.layers if isinstance(self.layers, list) else layer % 2 == (self.layers == "odd")

    def within(self, view: View) -> Kronecker | None:
        """For the matrices that the part has; None where it has none of those that are asked for."""
        asked = [pattern for pattern in self.matrices if any(matrix.is_called(pattern) for matrix in view.whole)]
        there = any(
            matrix.is_called(pattern) and self.reaches(matrix.layer) for matrix in view.whole for pattern in asked
        )
        return self.model_copy(update={"matrices": asked}) if there else None

    def untrained(self) -> Kronecker:
        """The nearest factors to the weights."""
        return self.model_copy(update={"initialization": "nearest"})

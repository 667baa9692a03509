"""The settings of pruning, as a recipe writes them; torch is not needed to read or check them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from abridged.core import amounts
from abridged.core.settings import Settings

MEASURES = ("parameters", "bytes", "flops", "latency")


def amount(value: float | str, measure: str) -> float:
    """What a person wrote as a number: a share, such as 0.3, or see `abridged.core.amounts`.

    Raises ValueError for anything else.
    """
    example = {"bytes": "0.3 or 40MB", "latency": "0.5 or 3ms"}.get(measure, "0.3 or 25M")
    try:
        return amounts.amount(value, "time" if measure == "latency" else "numbers", example)
    except ValueError as error:
        raise ValueError(f"budget.{measure} {error}") from None


class StoredBits(Settings):
    """In how many bits a checkpoint will hold what is left, for a budget in bytes."""

    model_config = ConfigDict(frozen=True)

    weights: float = Field(32, gt=0, le=32, description="of attention and feed-forward matrices, where bytes count")
    embeddings: float = Field(32, gt=0, le=32, description="of the token embedding and the head, where bytes count")
    rest: float = Field(32, gt=0, le=32, description="of positions, norms and biases, where bytes count")


class Budget(Settings):
    """What the pruned model may take: one of parameters, bytes, FLOPs or latency.

    Of several the one given last counts, so that `--set budget.bytes=40MB` takes the place of a recipe's parameters.
    """

    model_config = ConfigDict(frozen=True)

    parameters: float | str | None = Field(
        None, description="embeddings included: a share of the model's up to 1, or a number such as 25M"
    )
    bytes: float | str | None = Field(None, description="of the file: a share up to 1, or such as 40MB (of 2^20 bytes)")
    flops: float | str | None = Field(None, description="of a token at `context`: a share up to 1, or such as 1.5G")
    latency: float | str | None = Field(
        None,
        description="of the matrix products of `context` tokens, measured on this machine: a share, or such as 3ms",
    )
    context: int = Field(128, ge=1, description="tokens of a sequence, where FLOPs or latency count")
    embeddings: bool = Field(
        True, description="count embeddings and heads too; false: the encoder or decoder alone, as CoFi's sparsity does"
    )
    bits: StoredBits = StoredBits()

    @model_validator(mode="before")
    @classmethod
    def _last(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = [name for name, value in data.items() if name in MEASURES and value is not None]
        return {name: value for name, value in data.items() if name not in given[:-1]}

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"a budget is one of {', '.join(MEASURES)}: none is given")
        amount(getattr(self, given[0]), given[0])
        return self

    @property
    def measure(self) -> str:
        """Which of the four it is in."""
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """The amount, or the share where it is at most 1 and has no unit."""
        return amount(getattr(self, self.measure), self.measure)

    @property
    def is_share(self) -> bool:
        """Whether it is a share of what the model takes before."""
        given = str(getattr(self, self.measure)).strip()
        return self.value <= 1 and not given[-1:].isalpha()


Structure = Literal["hidden", "heads", "ffn", "blocks"]

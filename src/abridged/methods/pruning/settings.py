"""The settings of pruning, as a recipe writes them; torch is not needed to read or check them."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MEASURES = ("parameters", "bytes", "flops", "latency")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1.0, "kb": 2.0**10, "mb": 2.0**20, "gb": 2.0**30}
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def amount(value: float | str, measure: str) -> float:
    """What a person wrote as a number: 0.3 (a share), 25000000, "25M", "40MB" (of 2^20 bytes), "3ms" (in seconds).

    Raises ValueError for anything else.
    """
    found = _AMOUNT.fullmatch(str(value).strip())
    units = _TIMES if measure == "latency" else _UNITS
    if found is None or (found[2].lower() not in units and found[2] != ""):
        example = {"bytes": "0.3 or 40MB", "latency": "0.5 or 3ms"}.get(measure, "0.3 or 25M")
        raise ValueError(f"budget.{measure} cannot be read: {value!r} (such as {example})")
    number = float(found[1]) * units.get(found[2].lower(), 1.0)
    if number <= 0:
        raise ValueError(f"budget.{measure} must be above 0")
    return number


class StoredBits(BaseModel):
    """In how many bits a checkpoint will hold what is left, for a budget in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: float = Field(32, gt=0, le=32, description="of attention and feed-forward matrices, where bytes count")
    embeddings: float = Field(32, gt=0, le=32, description="of the token embedding and the head, where bytes count")
    rest: float = Field(32, gt=0, le=32, description="of positions, norms and biases, where bytes count")


class Budget(BaseModel):
    """What the pruned model may take: one of parameters, bytes, FLOPs or latency.

    Of several the one given last counts, so that `--set budget.bytes=40MB` takes the place of a recipe's parameters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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

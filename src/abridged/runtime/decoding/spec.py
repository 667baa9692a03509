"""A decode step as plain data: what a token meets on its way through a decoder, by paths of the model's own modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["half", "pairs"]


@dataclass(frozen=True)
class Norm:
    """y = x, less its mean or not, over its size, times (weight + `offset`), plus a bias where the module has one."""

    path: str
    centred: bool
    offset: float  #: 1 in Gemma, else 0
    eps: float


@dataclass(frozen=True)
class Heads:
    """Where in what a matrix puts out the heads of a role are: head h has `width` numbers from offset + h * stride."""

    matrix: str
    offset: int
    stride: int
    count: int
    width: int
    norm: Norm | None = None  #: of each head, or of all of them together, before the rotation


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of the first numbers of a head, as many as the model's own module gives cosines for.

    Scaled ones (linear, NTK, YaRN, Llama 3) are that module's matter.
    """

    path: str
    arguments: tuple[tuple[str | None, Any], ...]  #: of its forward, by name or None: STATES, POSITIONS or a constant
    style: Style  #: what is turned together: number i and i + width / 2, or numbers 2i and 2i + 1
    repeated: bool  #: for pairs: whether the cosines come as c0 c0 c1 c1 … and not as c0 c1 … c0 c1 …


STATES, POSITIONS = "<states>", "<positions>"


@dataclass(frozen=True)
class Attention:
    path: str
    before: Norm | None
    query: Heads
    key: Heads
    value: Heads
    rotary: int | None  #: which of the step's; None where a layer has no positions
    scaling: float
    softcap: float | None
    window: int | None  #: how many tokens a query sees, its own among them
    output: str
    after: Norm | None
    multiplier: float


@dataclass(frozen=True)
class Columns:
    """Of what a matrix puts out, `count` numbers from `start` on, every `step`-th."""

    matrix: str
    start: int
    count: int
    step: int


@dataclass(frozen=True)
class FeedForward:
    before: Norm | None
    gate: Columns | None  #: then activation(gate) * up, else activation(up)
    up: Columns
    activation: str
    output: str
    after: Norm | None
    multiplier: float


@dataclass(frozen=True)
class Block:
    attention: Attention
    feed_forward: FeedForward
    parallel: bool  #: both read what comes in; else the second reads what the first has added to


@dataclass(frozen=True)
class Positions:
    """Learned positions: token t adds row t + offset."""

    path: str
    offset: int


@dataclass(frozen=True)
class StepSpec:
    embedding: str
    multiplier: float  #: of the embedding
    positions: Positions | None
    rotaries: tuple[Rotary, ...]
    blocks: tuple[Block, ...]
    norm: Norm | None
    head: str
    head_multiplier: float  #: of what the head reads
    logits_multiplier: float
    softcap: float | None  #: of the logits

"""The words in which a family describes a model; no method needs to know more about it."""

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal, get_args

PartName = Literal["embedding", "positions", "attention", "ffn", "pooler", "head"]


@dataclass(frozen=True)
class Matrix:
    """One weight matrix that a method may compress.

    Rows are output features (or vocabulary entries) and columns input features, whatever the model stores.
    """

    name: str  #: dotted path of the module that holds it
    kind: Literal["linear", "embedding"]
    part: PartName
    layer: int | None
    rows: int
    columns: int
    transposed: bool = False  #: stored (columns, rows), as GPT-2's Conv1D does
    fused: int = 1  #: equal blocks of rows that are matrices in their own right (3 for fused Q, K, V)
    tied: tuple[str, ...] = ()  #: paths of further modules that read the same weight
    input: Literal["symmetric", "asymmetric"] = "symmetric"  #: range of the input; asymmetric after GELU or ReLU
    factor_of: "Matrix | None" = None  #: the matrix of the model that this one is a factor of

    def is_called(self, pattern: str) -> bool:
        """Whether a recipe means this matrix: by part, by part and factor ("ffn.left"), or by a pattern of its path."""
        part, _, factor = pattern.partition(".")
        if part in get_args(PartName):
            side = self.name.rpartition(".")[2] if self.factor_of else ""
            return part == self.part and factor in ("", side)
        return fnmatch(self.name, pattern)


@dataclass(frozen=True)
class Part:
    """A part with units of its own: heads of an attention, inner units of a feed-forward part or of a pooler.

    Its units are rows of `inputs` and columns of `output`, as many of each for every unit. What it puts out is added
    to the residual stream, except a pooler's.
    """

    path: str  #: the attention module; of others the output matrix
    kind: Literal["attention", "ffn", "pooler"]
    layer: int | None
    inputs: tuple[str, ...]
    output: str
    units: int  #: groups of query heads that share keys and values; or the inner width


@dataclass(frozen=True)
class Anatomy:
    """What a model is made of: embeddings first, then the layers in order.

    The residual stream is as wide as the model: every linear matrix reads it (its columns) but the outputs of `parts`,
    which write to it (their rows), as the embeddings do.
    """

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    context: int  #: the longest sequence that the position embeddings reach
    matrices: list[Matrix] = field(default_factory=list)
    attentions: list[str] = field(default_factory=list)  #: paths of the attention modules
    positions: list[str] = field(default_factory=list)  #: paths of the learned position embeddings
    blocks: list[str] = field(default_factory=list)  #: paths of the repeated blocks, for regional compilation
    parts: list[Part] = field(default_factory=list)  #: attention and feed-forward parts, and a pooler
    norms: list[str] = field(default_factory=list)  #: paths of the norms on the residual stream
    writers: list[str] = field(default_factory=list)  #: further matrices whose rows are as wide as the stream
    readers: list[str] = field(default_factory=list)  #: output layers for labels, which read the stream

    @property
    def whole(self) -> list[Matrix]:
        """The model's own matrices, those that are stored as factors among them."""
        return list(dict.fromkeys(matrix.factor_of or matrix for matrix in self.matrices))

    @property
    def feed_forward(self) -> list[str]:
        """Paths of the modules that the layers' feed-forward parts end with, in order."""
        last = {matrix.layer: matrix.name for matrix in self.whole if matrix.part == "ffn"}
        return [last[layer] for layer in sorted(layer for layer in last if layer is not None)]

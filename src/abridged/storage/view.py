"""What a model is made of, as plain data: no torch here, and no method needs to know more about a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field

PartName = Literal["embedding", "positions", "attention", "ffn", "pooler", "head"]
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Index = Annotated[int, Field(ge=0, lt=1 << 31)]
Dotted = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=512)]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Matrix:
    """One weight matrix that a method may compress.

    Rows are output features (or vocabulary entries) and columns input features, whatever the model stores.
    """

    __pydantic_config__ = _STRICT
    name: Dotted  #: dotted path of the module that holds it
    kind: Literal["linear", "embedding"]
    part: PartName
    layer: Index | None
    rows: Size
    columns: Size
    transposed: bool = False  #: stored (columns, rows), as GPT-2's Conv1D does
    fused: Size = 1  #: equal blocks of rows that are matrices in their own right (3 for fused Q, K, V)
    tied: tuple[Dotted, ...] = ()  #: paths of further modules that read the same weight
    input: Literal["symmetric", "asymmetric"] = "symmetric"  #: range of the input; asymmetric after GELU or ReLU
    factor_of: Matrix | None = None  #: the matrix of the model that this one is a factor of

    def is_called(self, pattern: str) -> bool:
        """Whether a recipe means this matrix: by its path, by part, by part and factor ("ffn.left"), or by a pattern of
        its path."""
        if pattern == self.name:  # which may begin as a part is called: pooler.dense
            return True
        part, _, factor = pattern.partition(".")
        if part in get_args(PartName) and factor in ("", "left", "right"):
            side = self.name.rpartition(".")[2] if self.factor_of else ""
            return part == self.part and factor in ("", side)
        return fnmatch(self.name, pattern)


@dataclass(frozen=True)
class Run:
    """Rows of a matrix that go with units: unit u owns `size` of them from offset + u * stride."""

    __pydantic_config__ = _STRICT
    offset: Index
    stride: Index
    size: Size


@dataclass(frozen=True)
class Part:
    """A part with units of its own: heads of an attention, inner units of a feed-forward part or of a pooler.

    Its units are rows of `inputs` and columns of `output`, as many of each for every unit. What it puts out is added
    to the residual stream, except a pooler's.
    """

    __pydantic_config__ = _STRICT
    path: Dotted  #: the attention module; of others the output matrix
    kind: Literal["attention", "ffn", "pooler", "fixed"]  #: fixed: none of its units can be removed, nor all
    layer: Index | None
    inputs: tuple[Dotted, ...]
    output: Dotted
    units: Size  #: groups of query heads that share keys and values; or the inner width
    runs: dict[Dotted, tuple[Run, ...]] = field(default_factory=dict, hash=False)  #: by input: which rows are whose


@dataclass(frozen=True)
class Stream:
    """A residual stream: blocks in order that read it and add to it. An encoder-decoder has two."""

    __pydantic_config__ = _STRICT
    path: Dotted  #: the list of its blocks
    width: Size
    blocks: Size  #: how many
    norm_first: bool  #: whether a norm stands before what first reads it (not in OLMo 2 or Marian)


@dataclass(frozen=True)
class Logits:
    """What makes logits of the last hidden state h: cap * tanh(s / cap), s = scale * head(input_scale * h)."""

    __pydantic_config__ = _STRICT
    scale: Number = 1.0  #: Cohere's logit_scale, Granite's 1 / logits_scaling
    input_scale: Number = 1.0  #: T5's d_model ** -0.5
    cap: Number | None = None  #: Gemma 2's final_logit_softcapping; None: s is left as it is


@dataclass(frozen=True)
class View:
    """What a model is made of: embeddings first, then the layers in order.

    The residual stream is as wide as the model: every linear matrix reads it (its columns) but the outputs of `parts`,
    which write to it (their rows), as the embeddings do, and the `sources`, which read what is no stream.
    """

    __pydantic_config__ = _STRICT
    model_type: str
    hidden_size: Size
    layers: Index
    heads: Index  #: query heads of an attention, in the decoder where there are two; 0 where none was found
    context: Size  #: the longest sequence that positions reach
    matrices: list[Matrix] = field(default_factory=list)
    attentions: list[Dotted] = field(default_factory=list)  #: paths of the attention modules
    positions: list[Dotted] = field(default_factory=list)  #: paths of the learned position embeddings
    blocks: list[Dotted] = field(default_factory=list)  #: paths of the repeated blocks, for regional compilation
    parts: list[Part] = field(default_factory=list)  #: attention and feed-forward parts, and a pooler
    norms: list[Dotted] = field(default_factory=list)  #: paths of the norms on the residual stream
    writers: list[Dotted] = field(default_factory=list)  #: further matrices whose rows are as wide as the stream
    readers: list[Dotted] = field(default_factory=list)  #: output layers for labels, which read the stream
    sources: list[Dotted] = field(default_factory=list)  #: matrices that write to the stream and read none, of patches
    streams: tuple[Stream, ...] = ()
    logits: Logits | None = None  #: None: the model has no head for tokens, or one that does not read the stream
    embedding_scale: Number = 1.0  #: what rows of the token embedding are multiplied by before they are the stream
    through_base: bool = True  #: whether a pass of the model calls its base model
    faults: tuple[str, ...] = ()  #: why parts of it cannot be cut
    bare: Annotated[float, Field(ge=0, le=1)] = 0.0  #: share of the weights that no method reaches
    bare_names: tuple[str, ...] = ()  #: the parameters that they are: stacked experts, convolutions

    def check(self) -> None:
        """Raise ValueError unless its parts are of its matrices, and their units of the rows and columns these have."""
        matrices = {matrix.name: matrix for matrix in self.matrices}
        if len(matrices) != len(self.matrices) or len(self.blocks) != self.layers:
            raise ValueError("the view names a matrix twice, or not as many blocks as layers")
        for part in self.parts:
            output = matrices.get(part.output)
            if output is None and part.kind != "pooler" or output is not None and output.columns % part.units:
                raise ValueError(f"the {part.units} units of {part.path} do not divide the columns of {part.output}")
            if set(part.runs) != set(part.inputs):
                raise ValueError(f"the view does not say which rows the units of {part.path} are")
            for name, runs in part.runs.items():
                rows = matrices[name].rows if name in matrices else 0
                owned = part.units * sum(run.size for run in runs)
                if owned > rows or any(r.offset + (part.units - 1) * r.stride + r.size > rows for r in runs):
                    raise ValueError(f"the {part.units} units of {part.path} have more rows than {name}")

    @property
    def bare_stream(self) -> bool:
        """Whether a part reads the stream before any norm does."""
        return not all(stream.norm_first for stream in self.streams)

    @property
    def whole(self) -> list[Matrix]:
        """The model's own matrices, those that are stored as factors among them."""
        return list(dict.fromkeys(matrix.factor_of or matrix for matrix in self.matrices))

    @property
    def feed_forward(self) -> list[str]:
        """Paths of the modules that the layers' feed-forward parts end with, in order."""
        last = {matrix.layer: matrix.name for matrix in self.whole if matrix.part == "ffn"}
        return [last[layer] for layer in sorted(layer for layer in last if layer is not None)]

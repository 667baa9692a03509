"""What a report shows, as plain data: numbers, strings and numpy arrays, no tensors and no models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MB = 2**20  #: bytes in the MB of every table, as the papers count them


@dataclass
class ModelRow:
    """One line of the summary table. The first row of a report is the teacher, the last the student."""

    name: str
    role: str  #: "teacher", "rounded" (quantised without training) or "student": decides the colour
    perplexity: float | None = None  #: per token
    word_perplexity: float | None = None
    file_bytes: int | None = None  #: on disk (for the teacher: its dense FP32 size)
    ratio: float | None = None  #: the teacher's bytes over these
    bits_per_weight: float | None = None
    scores: dict[str, float] = field(default_factory=dict)  #: of the task, such as ROUGE in per cent: more is better


@dataclass
class PartBytes:
    """Bytes of one part of the model as `inspect` names them (embedding, attention, ffn, …)."""

    name: str
    dense_bytes: int  #: before, FP32
    file_bytes: int  #: after, on disk


@dataclass
class MatrixPicture:
    """How one weight matrix (or one of the blocks of a fused one) lies on its grid.

    Weights are counted in units of their own clipping factor α, so that matrices with one scale, one a row or one a
    group are drawn alike. `counts[i]` is the share of weights (in 0..1) between `edges[i]` and `edges[i + 1]`; the
    first and the last bin also hold what lies beyond them.
    """

    name: str  #: dotted module path
    part: str
    layer: int | None
    shape: tuple[int, int]  #: (rows, columns), canonical
    counts: np.ndarray  #: (bins,)
    edges: np.ndarray  #: (bins + 1,), in units of α
    levels: list[float]  #: the grid in units of α
    alpha: tuple[float, float, float]  #: 5th percentile, median and 95th percentile over the scales
    scales: int  #: how many scales the matrix has
    mean_abs: float  #: mean |w|
    gamma: float | None  #: learned γ, or the median of α / mean |w| where the quantiser learns something else
    clipped: float  #: share of weights beyond ±α
    zeros: float | None  #: share of weights stored as 0; None for grids without a 0
    block: str = ""  #: "Q", "K" or "V" for the blocks of a fused matrix
    granularity: str = ""  #: "one scale", "one scale a row", …


@dataclass
class TokenCloud:
    """One model's last-layer states of one text, projected to two dimensions."""

    name: str
    role: str  #: as in ModelRow
    points: np.ndarray  #: (tokens, 2)
    to_teacher: float  #: mean cosine between this model's state of a token and the teacher's
    among: float  #: mean cosine between the states of different tokens within this model
    found: float  #: share of tokens whose nearest teacher state is that of the same token


@dataclass
class TokenPicture:
    """The same tokens as several models see them. The first cloud is the teacher's."""

    labels: list[str]  #: (tokens,) the tokens' text
    clouds: list[TokenCloud]
    explained: float  #: share of the teacher's variance that the two axes hold, 0..1


@dataclass
class Sample:
    """What one model wrote after the prompt."""

    name: str
    role: str
    text: str  #: the continuation, without the prompt


@dataclass
class SampleGroup:
    """The same prompt, or document, as several models go on from it, or sum it up."""

    prompt: str
    samples: list[Sample]
    label: str = "Prompt"  #: what the prompt is

    @classmethod
    def of(cls, prompt: str, texts: Mapping[str, str], label: str = "Prompt") -> "SampleGroup":
        """From texts by who wrote them: "teacher", "student", "reference", or any name for the untrained student."""
        roles = {"teacher": "teacher", "student": "student", "reference": "reference"}
        return cls(prompt, [Sample(who, roles.get(who, "rounded"), text) for who, text in texts.items()], label)


@dataclass
class HeadPicture:
    """What the teacher's attention heads look at, and which of them masks removed."""

    modules: list[str]  #: attention modules, in order
    values: np.ndarray  #: (modules, heads): share of attention on special tokens or on the current one, the larger
    removed: np.ndarray  #: (modules, heads) bool
    correlation: float | None  #: Spearman's, of that share with the masks' scores: below 0 where such heads went first
    each: dict[str, float | None] = field(default_factory=dict)  #: the same with single measures


@dataclass
class ReportData:
    """Everything a report can show. A field left empty leaves its section out."""

    title: str
    recipe: str = ""
    recipe_description: str = ""
    paper: str = ""
    base_model: str = ""
    data: str = ""  #: name of the text
    date: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)  #: context, stride, tokens, words of the perplexities
    summary: list[ModelRow] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)  #: lines of metrics.jsonl
    stages: list[str] = field(default_factory=list)  #: the stages' names, in order
    parts: list[PartBytes] = field(default_factory=list)
    matrices: list[MatrixPicture] = field(default_factory=list)
    tokens: TokenPicture | None = None
    samples: list[SampleGroup] = field(default_factory=list)
    heads: HeadPicture | None = None
    modules: list[dict[str, Any]] = field(default_factory=list)  #: as `inspect` lists them
    directory: str = ""  #: name of the checkpoint's directory, for the loading example
    auto_class: str = "AutoModelForCausalLM"  #: of transformers, that loads it
    machine: dict[str, str] = field(default_factory=dict)  #: machine and versions, in the order shown
    costs: dict[str, str] = field(default_factory=dict)  #: time and memory, in the order shown

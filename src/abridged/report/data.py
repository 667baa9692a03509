"""What a report shows, as plain data: numbers, strings and numpy arrays, no tensors and no models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from abridged.core.measurement import Measurement

MB = 2**20  #: bytes in the MB of every table, as the papers count them


@dataclass
class ModelRow:
    """One line of the summary table. The first row of a report is the teacher, the last the student."""

    name: str
    role: str  #: "teacher", "rounded" (quantised without training) or "student": decides the colour
    measurements: list[Measurement] = field(default_factory=list)
    file_bytes: int | None = None  #: on disk (for the teacher: its dense FP32 size)
    ratio: float | None = None  #: the teacher's bytes over these
    bits_per_weight: float | None = None

    def find(self, like: Measurement) -> Measurement | None:
        """What was measured of this model under the name of `like`."""
        return next((m for m in self.measurements if m.name == like.name), None)


@dataclass
class PartBytes:
    """Bytes of one part of the model as `inspect` names them (embedding, attention, ffn, …)."""

    name: str
    dense_bytes: int  #: before, FP32
    file_bytes: int  #: after, on disk

    @property
    def ratio(self) -> float | None:
        """How many times smaller; None where one of the two is nothing."""
        return self.dense_bytes / self.file_bytes if self.dense_bytes and self.file_bytes else None


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
        return cls(prompt, [Sample(who, role_of(who), text) for who, text in texts.items()], label)


def role_of(who: str) -> str:
    """The role, as in `ModelRow`, of whom a task calls so: any other name is the untrained student's."""
    return who if who in ("teacher", "student", "reference") else "rounded"


@dataclass
class HeadPicture:
    """What the teacher's attention heads look at, and which of them masks removed."""

    modules: list[str]  #: attention modules, in order
    values: np.ndarray  #: (modules, heads): share of attention on special tokens or on the current one, the larger
    removed: np.ndarray  #: (modules, heads) bool
    correlation: float | None  #: Spearman's, of that share with the masks' scores: below 0 where such heads went first
    each: dict[str, float | None] = field(default_factory=dict)  #: the same with single measures

    @property
    def count(self) -> int:
        """Heads in all: of some modules there are fewer than the widest has."""
        return int((~np.isnan(self.values)).sum())

    @property
    def most(self) -> float:
        """The largest share of any head."""
        return float(np.nanmax(self.values))


@dataclass
class PlanOutcome:
    """What a plan expected of a recipe, and what came of it."""

    expected_bytes: int
    expected_loss: float  #: nats a token, before any training
    file_bytes: int
    loss: float | None  #: rise of the log perplexity, after training if there was any; None of what has no perplexity
    trained: bool
    way: str  #: how sensitivity was found
    tokens: int
    front: list[tuple[int, float]] = field(default_factory=list)  #: bytes and expected loss of other sizes


@dataclass
class Strip:
    """Frames of a clip, in order, and how near each model has each of them to the clip's caption."""

    caption: str
    frames: list[bytes]  #: JPEG
    cosines: dict[str, np.ndarray]  #: (frames,) by model


@dataclass
class Confusion:
    """How often a caption was told from the same one with something in it turned around; chance is a half."""

    true: str  #: what the captions say: "left", or "a, then b"
    turned: str  #: and what it was turned into
    count: int
    mistaken: dict[str, float]  #: share of the captions whose opposite was as near or nearer, by model


@dataclass
class VideoPicture:
    """Clips as several models see them. Models are called as in `SampleGroup.of`, the teacher first."""

    strips: list[Strip]
    similarities: dict[str, np.ndarray]  #: (texts, clips) cosines by model
    own: np.ndarray  #: (texts, clips) bool: whether the text is one of the clip
    confusions: list[Confusion] = field(default_factory=list)


@dataclass
class SentencePair:
    """Two sentences, and their cosine by each model."""

    first: str
    second: str
    cosines: dict[str, float]


@dataclass
class SentencePicture:
    """Sentences as several models see them. Models are called as in `SampleGroup.of`, the teacher first."""

    points: TokenPicture  #: sentences in place of tokens
    similarities: dict[str, np.ndarray]  #: (pairs,) cosines by model, of some pairs
    own: np.ndarray  #: (pairs,) bool: whether one is among the teacher's nearest to the other
    neighbours: int  #: how many are called nearest
    kept: dict[str, np.ndarray]  #: (sentences,) how many of the teacher's nearest each other model finds
    worst: list[SentencePair]  #: whose cosine by the student is farthest from the teacher's


@dataclass
class ReportData:
    """Everything a report can show. A field left empty leaves its section out."""

    title: str
    recipe: str = ""
    recipe_description: str = ""
    paper: str = ""
    base_model: str = ""
    base_model_note: str = ""  #: a sentence on the teacher: that it was itself rounded
    data: str = ""  #: name of the text
    date: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)  #: what was read to measure: tokens, words, texts, …
    summary: list[ModelRow] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)  #: lines of metrics.jsonl
    stages: list[str] = field(default_factory=list)  #: the stages' names, in order
    parts: list[PartBytes] = field(default_factory=list)
    plan: PlanOutcome | None = None
    matrices: list[MatrixPicture] = field(default_factory=list)
    tokens: TokenPicture | None = None
    samples: list[SampleGroup] = field(default_factory=list)
    heads: HeadPicture | None = None
    videos: VideoPicture | None = None
    sentences: SentencePicture | None = None
    modules: list[dict[str, Any]] = field(default_factory=list)  #: as `inspect` lists them
    directory: str = ""  #: name of the checkpoint's directory, for the loading example
    auto_class: str = "AutoModelForCausalLM"  #: of transformers, that loads it
    machine: dict[str, str] = field(default_factory=dict)  #: machine and versions, in the order shown
    costs: dict[str, str] = field(default_factory=dict)  #: time and memory, in the order shown

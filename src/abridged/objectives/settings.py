"""The objectives' settings as they stand in a recipe. No torch here: `build` imports the term that computes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from abridged.core.errors import AbridgedError
from abridged.core.lazy import load
from abridged.core.settings import Settings

if TYPE_CHECKING:
    from abridged.objectives.base import ObjectiveContext, Term


class Objective(Settings):
    """Settings of one term of the training loss; `term` names the `Term` that computes it: "module:Class".

    `needs_teacher`, `needs_labels`, `needs_hidden_states`, `needs_attentions` and `needs_feed_forward` say what
    `Term.forward` has to be given.
    """

    term: ClassVar[str] = ""
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False
    needs_attentions: ClassVar[bool] = False
    needs_feed_forward: ClassVar[bool] = False

    weight: float = Field(default=1.0, ge=0, description="factor of this term in the total loss")

    def build(self, context: ObjectiveContext) -> Term:
        """The term that computes this objective, on `context.device`."""
        term: Term = load(self.term)(self, context)
        return term

    def cached_parts(self) -> frozenset[str]:
        """What it reads of an offline teacher: some of "top_logits" and "last_hidden".

        Raises:
            AbridgedError: the objective cannot be computed from an offline teacher.
        """
        raise AbridgedError(
            f"the objective '{type(self).__name__.lower()}' needs the teacher in memory: "
            "train it without a teacher cache"
        )

    def cached_temperature(self) -> float | None:
        """What divides the logits of the "top_logits" that it reads; None where it reads none."""
        return None


class Logits(Objective):
    """Soft-label distillation: the divergence of the student's next-token distribution from the teacher's."""

    term: ClassVar[str] = "abridged.objectives.logits:LogitDistillation"

    temperature: float = Field(default=1.0, gt=0, description="divides both models' logits; loss times its square")
    token_weights: Literal["uniform", "tsld"] = Field(
        default="uniform",
        description="how tokens count: all alike, or tsld (more where the teacher itself is wrong)",
    )
    tsld_temperature: float = Field(
        default=10.0,
        gt=0,
        description="divides the teacher's cross-entropy in tsld's softmax over the tokens",
    )

    def cached_parts(self) -> frozenset[str]:
        return frozenset({"top_logits"})

    def cached_temperature(self) -> float | None:
        return self.temperature


class Labels(Objective):
    """Cross-entropy with the text's own next tokens."""

    term: ClassVar[str] = "abridged.objectives.logits:LabelCrossEntropy"
    needs_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True

    def cached_parts(self) -> frozenset[str]:
        return frozenset()


class Contrastive(Objective):
    """Token-level contrastive distillation (QuantGPT, Tao et al., ACL 2022, arXiv:2203.10705, section 3.1)."""

    term: ClassVar[str] = "abridged.objectives.contrastive:ContrastiveDistillation"

    weight: float = Field(default=0.1, ge=0, description="factor of this term in the total loss")
    dimensions: int = Field(default=64, ge=1, description="size of the projected representations")
    bank: Literal["position", "vocabulary", "none"] = Field(
        default="position",
        description="what a smoothed representation is kept for: each position of the training text, each "
        "vocabulary entry, or nothing",
    )
    momentum: float = Field(default=0.5, ge=0, lt=1, description="share of the bank in q = m q + (1 - m) h")
    temperature: float = Field(default=0.1, gt=0, description="divides the cosine similarities")
    negatives: Literal["teacher", "student", "vocabulary"] = Field(
        default="teacher",
        description="what a token is set against: the teacher's or the student's other tokens of the sequence, or "
        "the teacher's output embeddings of random vocabulary entries",
    )
    num_negatives: int | None = Field(
        default=None,
        ge=1,
        description="how many candidates are drawn for each sequence; null = all its tokens (as many random entries "
        "as the sequence has tokens for vocabulary)",
    )

    def cached_parts(self) -> frozenset[str]:
        if self.negatives == "vocabulary":
            raise AbridgedError(
                "contrastive negatives 'vocabulary' need the teacher's embeddings in memory: take 'teacher' or "
                "'student' with a teacher cache"
            )
        return frozenset({"last_hidden"})


class Hidden(Objective):
    """Mean squared error between hidden states of the student and the teacher."""

    term: ClassVar[str] = "abridged.objectives.layers:HiddenDistillation"
    needs_hidden_states: ClassVar[bool] = True

    layers: dict[int, int] | None = Field(
        default=None,
        description="student layer: teacher layer, 0 = embedding output (an encoder's come first); null = every "
        "student layer, evenly spread over the teacher's",
    )


class Attention(Objective):
    """Divergence between the attention probabilities of the student and the teacher; rules out fused attention."""

    term: ClassVar[str] = "abridged.objectives.layers:AttentionDistillation"
    needs_attentions: ClassVar[bool] = True

    loss: Literal["kl", "mse"] = Field(
        default="kl",
        description="kl: divergence of the student's distributions from the teacher's; mse: of the numbers",
    )
    layers: dict[int, int] | None = Field(
        default=None,
        description="student layer: teacher layer, from 0; of an encoder-decoder the encoder's come first, then the "
        "decoder's, then those across; null = every student layer, evenly spread over the teacher's",
    )


class FeedForward(Objective):
    """Mean squared error between what the feed-forward parts of student and teacher add to the hidden states (ILKD)."""

    term: ClassVar[str] = "abridged.objectives.layers:FeedForwardDistillation"
    needs_feed_forward: ClassVar[bool] = True

    layers: dict[int, int] | None = Field(
        default=None,
        description="student layer: teacher layer, from 0; of an encoder-decoder the encoder's come first; null = "
        "every student layer, evenly spread over the teacher's",
    )


class EmbeddingDistillation(Objective):
    """The student's vectors of texts, and of videos and their frames where it reads them, are to be the teacher's, as
    in EmbedDistill (Kim et al. 2023, arXiv:2301.12005), and as far from each other, as in SEED (Fang et al., ICLR 2021,
    arXiv:2101.04731, section 3.2), with the batch for its queue."""

    term: ClassVar[str] = "abridged.objectives.embeddings:EmbeddingDistillation"

    frames: float = Field(default=1.0, ge=0, description="weight of the vectors of videos' frames beside the others")
    similarities: float = Field(
        default=1.0, ge=0, description="weight of the divergence of whom of the batch a vector is like"
    )
    temperature: float = Field(default=0.05, gt=0, description="divides the cosines of these distributions")

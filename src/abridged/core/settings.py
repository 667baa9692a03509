"""How a stage is trained: the `training:` part of a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from abridged.core.errors import AbridgedError

#: Tokens that are read at once where nobody says how many: memory and time grow with them, and positions of today's
#: models reach far beyond what a step on a small machine can hold.
DEFAULT_CONTEXT = 1_024
#: The largest seed: random generators are given it times 10^9, and end at 2^63.
LAST_SEED = 2**32 - 1


class Settings(BaseModel):
    """What a person sets. Unknown keys, infinities and NaN, and true or false for a number are faults."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = str(cls.model_fields[str(info.field_name)].annotation)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        if ("int" in wanted or "float" in wanted) and "bool" not in wanted and any(isinstance(v, bool) for v in inner):
            raise ValueError(f"input should be a number, not {str(value).lower()}")
        return value


_Average = Annotated[float, Field(ge=0, lt=1)]


class Augmentation(Settings):
    """Further training texts, made from those there are (TinyBERT, arXiv:1909.10351)."""

    variants: int = Field(5, ge=1, description="further texts from each")
    by: Literal["neighbours", "masks"] = Field(
        "neighbours",
        description="what words are replaced by: those with the nearest embeddings, or what a masked language model "
        "expects in their place",
    )
    model: str | None = Field(None, description="whose embedding or masked head that is; null: the teacher's")
    candidates: int = Field(15, ge=1, description="proposals for a word, of which one is drawn")
    probability: float = Field(0.4, gt=0, le=1, description="of a word that has proposals to be replaced")


class Events(Settings):
    """What is added to clips and their captions (EA-VTR, arXiv:2407.07478)."""

    joined: float = Field(
        0.5, ge=0, lt=1, description="share of the steps that read clips joined two by two, with their twins"
    )
    turned: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of these that are single clips and their twins played backwards, with every word of "
        "direction and the order of events turned around; only clips whose captions tell of either",
    )
    opposites: bool = Field(
        False,
        description="whether captions with every word of direction turned around, and with two events in the other "
        "order, are negatives beside those of the batch, where they tell of either",
    )
    alike: int = Field(
        1,
        ge=1,
        description="examples of a batch that are drawn together for having captions near each other's, so that "
        "details must tell them apart; 1: none",
    )
    frame_captions: bool = Field(
        True, description="whether frames come with captions of their own, where there are any"
    )
    captioner: str | None = Field(
        None,
        description="a BLIP for captions, which writes them for the frames of clips that come without; null: none does",
    )
    least_similarity: float = Field(
        0.0, ge=-1, le=1, description="cosine to the frame below which what the captioner wrote is dropped"
    )


class BlockSettings(Settings):
    """What a stage reads that goes block by block."""

    inputs: Literal["crossed", "quantized", "full"] = Field(
        "crossed",
        description="what a block is given, and whose outputs it is to match: crossed, what the blocks before it make, "
        "and the teacher's on its own inputs (GPTAQ, arXiv:2504.02692); quantized, the teacher's block on the same "
        "inputs (GPTQ); full: the teacher's inputs and outputs",
    )
    tokens: int = Field(16_384, ge=1, description="tokens that methods look at all at once, such as GPTQ")
    sequences: int = Field(
        128, ge=1, description="training examples that a block is trained on, in as many steps as training.steps says"
    )


class TrainingSettings(Settings):
    """Optimisation of one stage. Rates are those of AdamW."""

    steps: int = Field(1000, ge=0, description="optimiser steps; 0 prepares and packs without training")
    epochs: float | None = Field(None, gt=0, description="passes over the text; takes the place of steps when given")
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step, over all processes and accumulation")
    context: int | None = Field(
        None,
        ge=2,
        description=f"tokens per sequence; null: what the model's positions allow, at most {DEFAULT_CONTEXT:,}",
    )
    target_context: int | None = Field(
        None, ge=3, description="tokens per target, where an encoder-decoder learns from pairs; null is the context"
    )
    learning_rate: float = Field(5e-4, gt=0, description="peak rate of the weights")
    learning_rates: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="peak rates of a method's own parameter groups, such as scale (γ) and clip, or of the model's own "
        "by a pattern of their names, such as *.temporal.*; none of these is decayed",
    )
    freeze_weights: bool = Field(
        False, description="train only the methods' own parameters, such as masks, and those of the objectives"
    )
    data_share: float = Field(
        1.0, gt=0, le=1, description="share of the training examples that are read, the same ones in every epoch"
    )
    texts: str | None = Field(
        None,
        description="a text that the stage reads instead of the data, as `--data` takes one (wikitext-2, a file, a "
        "`datasets` name): light pre-training, or for encoders what the teacher alone says of sentences without labels",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay of every rate after warm-up")
    final_rate: float = Field(0.0, ge=0, le=1, description="share of the peak rate that the decay ends at")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps over which the rates rise from 0")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay, on matrices only")
    betas: tuple[_Average, _Average] = Field((0.9, 0.999), description="AdamW's running-average coefficients")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null does not clip")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes per optimiser step")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: slower, smaller"
    )
    mixed_precision: Literal["auto", "bf16", "no"] = Field(
        "auto",
        description="bf16 matmuls (weights, losses and quantisers stay FP32); auto: where the hardware is fast at it",
    )
    compile: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="torch.compile of the repeated blocks; auto: on runs long enough to repay the minute it takes",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="dropout while training; null keeps the model's (0 for students)"
    )
    evaluate_every: int = Field(200, ge=1, description="steps between validations")
    evaluate_tokens: int = Field(
        65_536, ge=1, description="validation tokens read while training; the final evaluation reads all"
    )
    save_every: int = Field(200, ge=1, description="steps between training checkpoints")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights a stage ends with: the last, or the best validated, its start among them"
    )
    augmentation: Augmentation | None = Field(
        None, description="further labelled texts to train on; null trains on those there are"
    )
    events: Events | None = Field(
        None, description="clips joined in order, and captions of frames, beside captions of clips; null: neither"
    )
    only: list[str] | None = Field(
        None, min_length=1, description="patterns of the parameters that are trained, such as *.temporal.*; null: all"
    )
    seed: int = Field(
        0, ge=0, le=LAST_SEED, description="seed of the order of the text, of dropout and of new parameters"
    )
    track_with: list[str] = Field(default_factory=list, description="accelerate trackers, such as tensorboard or wandb")

    def context_within(self, limit: int) -> int:
        """Tokens per sequence, for a model whose positions allow `limit`.

        Raises:
            AbridgedError: `context` is more than that.
        """
        if self.context is not None and self.context > limit:
            raise AbridgedError(f"training.context is {self.context}, but the model's positions end at {limit}")
        return self.context or min(limit, DEFAULT_CONTEXT)


def settings_to_read(context: int | None) -> TrainingSettings:
    """Those of what is read and not learned from, `context` tokens at once; None is as much as the model allows.

    Raises:
        AbridgedError: fewer than two tokens.
    """
    if context is not None and context < 2:
        raise AbridgedError(f"a context of {context} is too short: two tokens at least")
    return TrainingSettings(context=context)

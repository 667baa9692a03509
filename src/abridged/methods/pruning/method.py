"""Pruning as a method of a recipe: masks while a stage trains, a smaller model after it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from abridged.methods.base import Method, Needs
from abridged.methods.pruning.settings import Budget, Structure


class Prune(Method):
    """Structured pruning to a budget with learned masks (VTrans, Dutta et al., arXiv:2406.05276).

    While the stage is trained, masks lie on the hidden width, on heads, on the feed-forward width and on whole blocks.
    When it is finished the model is cut: what follows, a fine-tuning stage or quantisation, sees a smaller model.
    """

    name: ClassVar[str] = "prune"
    attached: ClassVar[str] = "abridged.methods.pruning.attached:Pruning"
    untrained_name: ClassVar[str] = "pruned by magnitude"
    reshapes: ClassVar[bool] = True

    budget: Budget = Field(description="what the pruned model may take")
    masks: Literal["vib", "l0", "magnitude", "taylor", "random"] = Field(
        "vib",
        description="vib: variational information bottleneck (VTrans); l0: hard concrete (CoFi); and what needs no "
        "mask to be learned: magnitude of weights, taylor (first-order, by gradients), random",
    )
    structures: tuple[Structure, ...] = Field(
        ("hidden", "heads", "ffn", "blocks"),
        description="what may be removed: hidden units (of embeddings, norms and all blocks at once), heads, inner "
        "units, whole attention and feed-forward blocks",
    )
    round_to: int = Field(1, ge=1, description="hidden and inner widths are multiples of this; 64 runs faster")
    measure: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of the stage for which vib and l0 remove nothing and measure what the loss depends on, to "
        "start from that; 0: all units start alike",
    )
    constraint: Literal["threshold", "lagrangian"] = Field(
        "threshold",
        description="how vib and l0 meet the budget: threshold, by one number that is added to all scores before "
        "every step; lagrangian, by a penalty with multipliers that rise (the paper's)",
    )
    warmup: float = Field(
        0.5, ge=0, le=1, description="share of the stage, after `measure`, over which the target falls to the budget"
    )
    beta: float = Field(1e-6, ge=0, description="weight of vib's divergence; of heads times their parameters")
    slope: tuple[float, float] = Field(
        (0.5, 2.0),
        description="of the sigmoid that counts units as kept, at the stage's start and end; a steep one has no "
        "gradient at the start, and gets stuck above the budget at the end",
    )
    reconstruct: bool = Field(
        False,
        description="after the cut, let each matrix make up for it on real inputs, by least squares against the model "
        "before; where weights were trained beside the masks they have done so",
    )
    fit_tokens: int = Field(16_384, ge=1, description="tokens that `reconstruct` reads, at once")
    hidden: Literal["units", "components"] = Field(
        "units",
        description="what is left of the hidden width: units, those that the masks keep; components, as many "
        "principal components of what norms read and put out (with `reconstruct`)",
    )
    widths: int = Field(
        0,
        ge=0,
        description="other hidden widths than the masks' own to try, each cut and fitted on some data (with "
        "`reconstruct`): the one whose outputs are nearest to the whole model's stays; heads and inner units take what "
        "it leaves of the budget",
    )
    updates: int = Field(20, ge=1, description="times that magnitude, taylor and random remove units during warm-up")

    @model_validator(mode="after")
    def _refitted(self) -> Prune:
        if self.hidden == "components" and not self.reconstruct:
            raise ValueError("hidden: components needs reconstruct: true, which fits norms and matrices to them")
        if self.widths and not self.reconstruct:
            raise ValueError("widths needs reconstruct: true, without which there is nothing to tell them by")
        return self

    @property
    def needs(self) -> Needs:
        """Gradients, where masks are learned or measured by them; inputs, where matrices are fitted on them."""
        if self.masks in ("vib", "l0", "taylor"):
            return "gradients"
        return "inputs" if self.reconstruct else "nothing"

    def untrained(self) -> Prune:
        """By magnitude, without training."""
        return self.model_copy(update={"masks": "magnitude", "widths": 0})

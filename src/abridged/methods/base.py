"""What every method offers the trainer: settings, and four moments at which it may change the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn


class Calibrate(Protocol):
    """Runs some of the data through a model without gradients."""

    def __call__(self, model: nn.Module, tokens: int | None = None) -> None:
        """In a few small batches, or in one batch of about so many tokens."""


class Method(BaseModel):
    """A way to make a model smaller. The fields are the recipe's settings; this module never imports torch.

    `anatomy` (`abridged.families.Anatomy`) lists the matrices, so no method names a model family.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    untrained_name: ClassVar[str] = ""
    """What `untrained` does, in a few words."""
    #: Whether `finish` gives the model other sizes, by what the training has found.
    reshapes: ClassVar[bool] = False

    def prepare(self, model: nn.Module, anatomy: Any, calibrate: Calibrate) -> None:
        """Change `model` in place before a stage trains it.

        `calibrate(model)` runs some batches of data through the model without gradients.
        """

    def step(self, model: nn.Module, progress: float) -> None:
        """Change what follows a schedule; called before each step with `progress` in [0, 1] of the stage."""

    def penalties(self, model: nn.Module) -> dict[str, Tensor]:
        """Scalars in FP32 to add to the loss, by name, computed in each forward pass while the stage is trained.

        What has no gradient is not added, but logged all the same.
        """
        return {}

    def finish(self, model: nn.Module) -> dict[str, Any] | None:
        """Leave behind what will be stored; called once after the stage.

        Returns facts for abridged.json, if there are any; "notes" among them are sentences that a person is told.
        """

    def untrained(self) -> Method:
        """The same storage by the simplest rule that needs no training: what a report compares with."""
        return self

    def parameter_groups(self, model: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Name the parameters that have learning rates of their own; all others are weights."""
        return {}

"""What a runner is given, what it does, and what it can give to methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from abridged.core.measurement import Measured
from abridged.data.examples import Examples
from abridged.methods.base import Method, Needs
from abridged.models.streamed import Weights
from abridged.recipe import Stage
from abridged.training.offline_teacher import OfflineTeacher
from abridged.training.workspace import Workspace


@dataclass
class Pass:
    """One stage of a recipe and what it takes to carry it out, but for the model.

    Attributes:
        number: of the stage, from 0.
        stage: methods, objectives and optimisation.
        examples: what the stage reads.
        work: keeps states and measurements; a run may be resumed from it.
        device: where models live.
        width, layers: of the original teacher, whom a student may be smaller than.
        validate: makes, of the student, the function that measures it now and then.
        teacher: whom the student learns from, a model or what is kept of its answers; None where no objective asks.
        dropout: of the student, where the stage's settings have none; None keeps the model's own.
        trained: whether an interrupted run has done this stage: what it left is taken up.
        keep: whether a later stage learns from what this one makes.
        weights: the teacher's, where they are streamed from disk; else None.
    """

    number: int
    stage: Stage
    examples: Examples
    work: Workspace
    device: torch.device
    width: int
    layers: int
    validate: Callable[[Any], Callable[[], Measured]]
    teacher: nn.Module | OfflineTeacher | None = None
    dropout: float | None = 0.0
    trained: bool = False
    keep: bool = False
    weights: Weights | None = None


class Runner(Protocol):
    """Carries out one stage. All passes over the model are its own: calibration, block inputs, training."""

    @staticmethod
    def gives(stage: Stage) -> Needs:
        """The most that a stage's methods may need of it; what needs more is refused before anything is loaded."""
        ...

    #: Wall time of training, and of what methods did to the student after it.
    seconds: dict[str, float]

    def __init__(self, given: Pass) -> None: ...

    def run(self, student: Any) -> Any:
        """Carry out the stage on `student`, in place: methods, training, and what methods leave behind; return it."""
        ...

    def apply(self, model: Any, methods: Sequence[Method]) -> None:
        """Carry methods out on `model`, in place, one after the other and without training it."""
        ...

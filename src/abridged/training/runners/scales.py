"""The packed model at once: its codes stay, and its scales are trained by gradients through all of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from abridged.methods.base import Attached, Needs
from abridged.methods.quantization.fixed import ScalesAlone
from abridged.recipe import Stage
from abridged.training.loop import Run
from abridged.training.modes import set_checkpointing, set_dropout
from abridged.training.runners.whole import Whole


class Scales(Whole):
    """A runner that goes on with what the runner blocks has made (EfficientQAT's second phase, arXiv:2407.11062).

    The model stays packed in memory: beside the codes there are five FP32 numbers for each scale, and one matrix at a
    time as it is (with gradient_checkpointing: those of one block). The teacher's blocks come from disk for each pass.
    """

    @staticmethod
    def gives(stage: Stage) -> Needs:
        return "nothing"

    def attach(self, student: Any) -> list[Attached]:
        """Let scales and vectors be trained, and nothing else."""
        torch.manual_seed(self.settings.seed)
        scales = ScalesAlone(student)
        set_dropout(student, self.given.dropout or 0.0)
        set_checkpointing(student, self.settings.gradient_checkpointing)
        return [scales]

    def training(self, student: Any, methods: list[Attached]) -> Run:
        """As of the whole model, but without compiling, since the teacher's blocks are fetched and let go of."""
        return replace(super().training(student, methods), compile=())

    def finish(self, student: Any, methods: list[Attached]) -> None:
        """Make a packed model of it again."""
        set_checkpointing(student, False)
        for method in methods:
            method.finish()
        student.eval()

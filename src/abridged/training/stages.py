"""A recipe's stages, one after the other: whom each learns from, and what an interrupted run has done of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from abridged.core.errors import AbridgedError
from abridged.data.blocks import Blocks
from abridged.methods.folding import fold
from abridged.recipe import Stage
from abridged.training.modes import hold_in_bf16
from abridged.training.offline_teacher import OfflineTeacher, cache_teacher
from abridged.training.opened import Opened
from abridged.training.processes import autocast, in_bf16
from abridged.training.runners import Pass, Whole, runner_of


class Stages:
    """Makes the student of an opened job.

    Attributes:
        student: the teacher's copy at first; trained, and changed by methods, stage by stage.
        seconds: what training took, and what methods then did to the student.
    """

    def __init__(self, opened: Opened) -> None:
        self.opened, self.recipe = opened, opened.recipe
        self.seconds = {"training": 0.0, "finishing": 0.0}
        self._previous: Any = None
        self._in_bf16: Any = None  # the teacher, where its matrices are held so
        found = opened.work.load_state() if opened.work.resume else None
        self._trained = found[1]["stage"] if found else 0  # stages that an interrupted run has done
        self.student: Any = opened.student()

    def run(self) -> None:
        """Carry out all stages. Those that an interrupted run has done are prepared and finished again, not trained:
        the state that the next one loads replaces their weights."""
        for number in range(len(self.recipe.stages)):
            self.run_stage(number)
        self._in_bf16 = None

    def run_stage(self, number: int) -> None:
        """Carry out one stage; those before it must have been."""
        stage, trained = self.recipe.stages[number], number < self._trained
        following = self.recipe.stages[number + 1 : number + 2]
        teaches = bool(following) and following[0].teacher == "previous"
        learns = not trained and any(objective.needs_teacher for objective in stage.objectives.values())
        teacher = self._teacher(number) if learns else None
        runner = runner_of(stage)(replace(self._pass(number), teacher=teacher, trained=trained, keep=teaches))
        self.student = runner.run(self.student)
        for name, seconds in runner.seconds.items():
            self.seconds[name] += seconds
        if teaches:
            self._previous = copy.deepcopy(self.student).requires_grad_(False).eval()

    def fold(self) -> Any:
        """Round the student's adapters into its codes, by what the last stage reads; returns it."""
        return fold(self.student, Whole(self._pass(len(self.recipe.stages) - 1)).calibrate)

    def untrained(self) -> Any:
        """The teacher under the last stage's methods, and what reshaped it before, in their simplest untrained form;
        None where there are no methods, or a model is never held whole."""
        if self.recipe.streamed:
            return None
        last = self.recipe.stages[-1]
        methods = [
            method.untrained()
            for stage in self.recipe.stages
            for method in stage.methods.values()
            if stage is last or method.reshapes
        ]
        if not methods:
            return None
        model: Any = copy.deepcopy(self.opened.teacher)
        Whole(self._pass(len(self.recipe.stages) - 1)).apply(model, methods)
        return model.eval()

    def _pass(self, number: int) -> Pass:
        """A stage as it is given to a runner, without a teacher."""
        opened, stage = self.opened, self.recipe.stages[number]
        return Pass(
            number=number,
            stage=stage,
            examples=opened.examples(number),
            work=opened.work,
            device=opened.device,
            width=opened.view.hidden_size,
            layers=opened.view.layers,
            validate=lambda student: opened.task.validation(student, stage.training),
            dropout=0.0 if opened.job.kind == "compress" else None,
            weights=opened.weights,
        )

    def _teacher(self, number: int) -> nn.Module | OfflineTeacher:
        """Whom a stage learns from: a model, or its cached answers without it."""
        opened, stage, folder = self.opened, self.recipe.stages[number], self.opened.job.teacher_cache
        if folder is None:
            return self._previous if stage.teacher == "previous" else self._original(stage)
        if stage.teacher == "previous":
            raise AbridgedError(
                "a teacher cache has the original teacher's answers, and a stage asks for the previous one's"
            )
        examples = opened.examples(number)
        if not isinstance(examples, Blocks):
            raise AbridgedError("a teacher cache holds answers on a text: train an encoder-decoder without one")
        parts = frozenset().union(*(o.cached_parts() for s in self.recipe.stages for o in s.objectives.values()))
        temperatures = [t for o in stage.objectives.values() if (t := o.cached_temperature()) is not None]
        folder = Path(folder) / f"context-{examples.context}"
        temperature = max(temperatures, default=1.0)
        with autocast(stage.training):
            cache_teacher(opened.teacher, examples, folder, parts=parts, temperature=temperature, show=opened.main)
        opened.release_teacher()  # training does without it; what comes after loads it again
        return OfflineTeacher(folder, examples, opened.hash)

    def _original(self, stage: Stage) -> nn.Module:
        """The original teacher, for a stage to learn from. Where it would be as good in bf16 it is held so, and whoever
        asks for it after all stages loads it again."""
        opened = self.opened
        if opened.weights is not None or opened.task.compares or not in_bf16(stage.training):
            self._in_bf16 = None
            return opened.teacher
        if self._in_bf16 is None:
            self._in_bf16 = opened.teacher
            opened.release_teacher()
            hold_in_bf16(self._in_bf16, opened.view)
        found: nn.Module = self._in_bf16
        return found

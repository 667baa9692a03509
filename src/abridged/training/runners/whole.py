"""The whole model at once: it is held in memory, and trained by gradients through all of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from fnmatch import fnmatch
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.core.modes import evaluating
from abridged.methods.base import Attached, Method, Needs
from abridged.objectives.base import ObjectiveContext, StudentForward
from abridged.recipe import Stage
from abridged.storage.compressed import compressed_of
from abridged.training.loop import Run, train
from abridged.training.modes import gelus_in_one_step, make_trainable, set_checkpointing, set_dropout
from abridged.training.processes import autocast
from abridged.training.runners.base import Pass
from abridged.training.runners.readings import few, many
from abridged.training.state import load_into, on_host, unique_state

#: Two models that are followed side by side read the same, whichever thread comes first (see `methods.lockstep`).
_DRAWING = Lock()


class Whole:
    """A runner whose methods may ask for anything: inputs of any module, and gradients.

    1. The methods change the student, in the recipe's order; each sees what the one before has made of it.
    2. Student and objectives become one module, which the loop trains.
    3. What a later stage or a resumed run needs of the trained student is kept on disk.
    4. The methods leave behind what will be stored.
    """

    def __init__(self, given: Pass) -> None:
        self.given, self.settings = given, given.stage.training
        self.seconds = {"training": 0.0, "finishing": 0.0}
        self.recomputing: dict[str, Any] = {}  # settings of torch.utils.checkpoint

    @staticmethod
    def gives(stage: Stage) -> Needs:
        return "gradients" if stage.trains else "inputs"

    def run(self, student: Any) -> Any:
        methods = self.attach(student)
        if not self.given.trained:
            began = time.perf_counter()
            with gelus_in_one_step(student):
                training = self.training(student, methods)
                with closing(training.system):
                    train(training)
            self.seconds["training"] = time.perf_counter() - began
        began = time.perf_counter()
        self.finish(student, methods)
        self.seconds["finishing"] = time.perf_counter() - began
        return student

    def apply(self, model: Any, methods: Sequence[Method]) -> None:
        for method in methods:
            method.build(model, families.view(model), self.calibrate).finish()

    def attach(self, student: Any) -> list[Attached]:
        """Let the stage's methods change the student."""
        torch.manual_seed(self.settings.seed)
        methods = []
        for method in self.given.stage.methods.values():  # each sees what the one before has made of it
            methods.append(method.build(student, families.view(student), self.calibrate))
        make_trainable(student)
        dropout = self.given.dropout if self.settings.dropout is None else self.settings.dropout
        if dropout is not None:
            set_dropout(student, dropout)
        set_checkpointing(student, self.settings.gradient_checkpointing, **self.recomputing)
        return methods

    def training(self, student: Any, methods: list[Attached]) -> Run:
        """The training of the student on what the stage's objectives ask of it; its system is to be closed after it."""
        given = self.given
        sizes = ObjectiveContext.of(
            student,
            given.examples,
            teacher_hidden_size=given.width,
            layers=given.layers,
            device=given.device,
            hidden_units=compressed_of(student).hidden_units,
        )

        def penalties() -> dict[str, Tensor]:
            return {name: value for method in methods for name, value in method.penalties().items()}

        def step(progress: float) -> None:
            for method in methods:
                method.step(progress)

        teacher = given.teacher
        system = StudentForward(student, given.stage.objectives, sizes, penalties)
        groups = groups_of(methods)
        groups |= named(student, self.settings.learning_rates, groups)
        if self.settings.freeze_weights:
            student.requires_grad_(False)
            for parameter in (p for parameters in groups.values() for p in parameters):
                parameter.requires_grad_(True)
        elif self.settings.only is not None:
            train_only(student, self.settings.only, groups)
        repeated = [model for model in (student, teacher) if isinstance(model, nn.Module)]
        return Run(
            system=system,
            examples=given.examples,
            settings=self.settings,
            work=given.work,
            stage=given.number,
            targets=partial(system.teach, teacher) if isinstance(teacher, nn.Module) else teacher,
            before_step=step,
            after_step=system.after_step,
            validate=given.validate(student),
            groups=groups,
            compile=[model.get_submodule(path) for model in repeated for path in families.view(model).blocks],
        )

    def finish(self, student: Any, methods: list[Attached]) -> None:
        """Let the methods leave behind what will be stored, and say what a person should know of it."""
        set_checkpointing(student, False)
        if self.given.keep or any(method.settings.reshapes for method in methods):
            self._keep_or_load(student)  # a resumed run must find it, to make the same of it
        for method in methods:
            notes = method.finish().notes.get(method.settings.name, ())
            for note in notes if self.given.work.main else ():
                print(f"warning: {note}", file=sys.stderr)

    def _keep_or_load(self, student: Any) -> None:
        """Keep the student on disk as a stage has trained it; of a stage done before a run was resumed, take it up."""
        if self.given.trained:
            load_into(student, self.given.work.load_student(self.given.number))
        else:
            self.given.work.save_student(self.given.number, on_host(unique_state(student)))

    def calibrate(self, model: nn.Module, tokens: int | None = None) -> None:
        """Run some of the stage's examples through a model: a few, or one batch of about so many tokens."""
        examples, seed = self.given.examples, self.settings.seed
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # some examples draw what they mask
            batches = few(examples, seed) if tokens is None else [many(examples, seed, tokens)]
        with torch.no_grad(), evaluating(model), nullcontext() if tokens is None else autocast(self.settings):
            for batch in batches:
                model(**batch.to(self.given.device).model_inputs, use_cache=False)


def train_only(student: nn.Module, patterns: Sequence[str], groups: dict[str, list[nn.Parameter]]) -> None:
    """Train the parameters of those names alone, and those that methods train at rates of their own.

    Raises:
        AbridgedError: a pattern means none.
    """
    own = {id(parameter) for parameters in groups.values() for parameter in parameters}
    names = [name for name, _ in student.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise AbridgedError(f"training.only: no parameter of the model is called {pattern}")
    for name, parameter in student.named_parameters():
        wanted = any(fnmatch(name, pattern) for pattern in patterns)
        parameter.requires_grad_(parameter.requires_grad and (wanted or id(parameter) in own))


def named(
    student: nn.Module, rates: Iterable[str], groups: dict[str, list[nn.Parameter]]
) -> dict[str, list[nn.Parameter]]:
    """The student's own parameters that have rates by a pattern of their names, such as *.temporal.*, by that pattern.

    Raises:
        AbridgedError: a pattern means none that no other rate is for.
    """
    own = {id(parameter) for parameters in groups.values() for parameter in parameters}
    found: dict[str, list[nn.Parameter]] = {}
    for pattern in (rate for rate in rates if "*" in rate):
        found[pattern] = [p for name, p in student.named_parameters() if fnmatch(name, pattern) and id(p) not in own]
        own |= {id(p) for p in found[pattern]}
        if not found[pattern]:
            raise AbridgedError(f"training.learning_rates: no parameter of the model is called {pattern}")
    return found


def groups_of(methods: Sequence[Attached]) -> dict[str, list[nn.Parameter]]:
    """The parameters of all methods that have learning rates of their own, by the group's name."""
    groups: dict[str, list[nn.Parameter]] = {}
    for method in methods:
        for name, parameters in method.parameter_groups().items():
            groups.setdefault(name, []).extend(parameters)
    return groups

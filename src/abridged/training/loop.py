"""The training loop, on accelerate: one process or many, resumable to the bit on a CPU."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.core.hardware import can_compile
from abridged.core.measurement import Measured
from abridged.core.progress import progress, seconds_since
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.examples import Examples
from abridged.objectives.base import StudentForward
from abridged.training.optimizer import make_optimizer, rate_factor, total_steps
from abridged.training.processes import attention_for, autocast, make_accelerator, together
from abridged.training.state import TrainingState
from abridged.training.workspace import Workspace

#: Steps from which compiling the blocks repays the time it takes.
_COMPILE_FROM_STEPS = 200


@dataclass
class Run:
    """All that training one stage needs."""

    system: StudentForward  #: the student and its objectives; forward(batch, targets) -> (loss, named terms)
    examples: Examples
    settings: TrainingSettings
    work: Workspace
    stage: int = 0
    #: what the teacher says of a batch; None where no objective asks
    targets: Callable[[Batch], Any] | None = None
    #: called with the stage's progress in [0, 1] before each step
    before_step: Callable[[float], None] = lambda progress: None
    #: called after each step, with the accelerator
    after_step: Callable[[Accelerator], None] = lambda accelerator: None
    #: what is measured now and then, on the main process; its headline is what is watched
    validate: Callable[[], Measured] | None = None
    #: parameters with rates of their own, by the group's name
    groups: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    #: repeated blocks to compile
    compile: Iterable[nn.Module] = ()


def train(run: Run) -> None:
    """Train `run.system` for one stage, in place.

    Raises:
        AbridgedError: the batch does not divide among the processes, or the loss is not finite for a second time
            (after the first, the run goes back to its last checkpoint and goes on at a tenth of the rate).
    """
    if total_steps(run.settings, run.examples) > 0:
        trainer = Trainer(run)
        try:
            trainer.train()
        finally:
            trainer.close()


class Trainer:
    """One stage's training: `train` is the loop, `step` what happens in it, `report` what happens now and then."""

    def __init__(self, run: Run) -> None:
        self.run, self.settings, self.work = run, run.settings, run.work
        self.steps = total_steps(run.settings, run.examples)
        self.accelerator = make_accelerator(run.settings)
        self.passes = run.settings.gradient_accumulation
        self.sequences = self._sequences_per_pass()
        self.order = run.examples.order(run.settings.seed, run.settings.batch_size)
        run.system._apply(lambda one: one if one.is_meta else one.to(self.accelerator.device))
        optimizer = make_optimizer(run.system, run.settings, run.groups)
        there = [False, False]  # accelerate would move what lies on disk, too
        self.system, self.optimizer = self.accelerator.prepare(run.system, optimizer, device_placement=there)
        self.parameters = list(self.system.parameters())
        self.state = TrainingState(run.stage, run.system, optimizer, run.work)
        self.log_every = max(1, min(20, self.steps // 50))
        self.compiled = False
        self.pending: list[dict[str, Tensor]] = []  # what the passes since the last report measured
        self._start_clock()

    def train(self) -> None:
        """Train to the stage's end, from its beginning or from where an interrupted run left its last checkpoint."""
        self.run.system.train()
        self.compiled = self._compile()
        if self.settings.track_with:
            config = {key: str(value) for key, value in self.settings.model_dump().items()}
            self.accelerator.init_trackers("abridged", config=config)
        with together():
            begun = self.work.resume and self.state.load()
            self.work.forget_metrics_after(self.run.stage, self.state.step if begun else -1)
            if not begun:
                if self.settings.keep == "best" and self.accelerator.is_main_process:
                    self._validate()  # what training has to beat
                self.state.save()
        self._start_clock()
        main = self.accelerator.is_main_process
        with progress(f"stage {self.run.stage + 1}", self.steps, self.state.step, main) as show:
            while self.state.step < self.steps:
                self.step()
                show(self.state.step)
                self.report(show)
        if self.settings.keep == "best":
            self._go_back_to_best()
        self.run.system.eval()

    def close(self) -> None:
        """Leave the model as it was found: what follows runs eagerly."""
        if self.settings.track_with:
            self.accelerator.end_training()
        for block in self.run.compile:
            block._compiled_call_impl = None

    def _sequences_per_pass(self) -> int:
        processes, batch_size = self.accelerator.num_processes, self.settings.batch_size
        if batch_size % (processes * self.passes):
            raise AbridgedError(
                f"batch_size {batch_size} does not divide among {processes} processes with {self.passes} accumulated "
                "passes each"
            )
        return batch_size // (processes * self.passes)

    def _compile(self) -> bool:
        wanted = self.settings.compile == "auto" and self.steps >= _COMPILE_FROM_STEPS and can_compile()
        wanted = wanted and self.run.examples.same_length
        wanted = wanted or self.settings.compile == "yes"
        if wanted and not self.run.examples.same_length:
            # Otherwise torch 2.13 takes floats for inputs where sizes vary, and trips over those in autograd.Functions.
            torch._dynamo.config.specialize_float = True
        for block in self.run.compile if wanted else ():
            block.compile(dynamic=not self.run.examples.same_length)
        return wanted

    def step(self) -> None:
        """One optimiser step; everything random in it is a function of the seed, the step and the process."""
        step = self.state.step
        torch.manual_seed((self.settings.seed * 1_000_003 + step) * 1009 + self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self._rate_factor(step)
        self.run.before_step(step / self.steps)
        for number in range(self.passes):
            last = number + 1 == self.passes
            with nullcontext() if last else self.accelerator.no_sync(self.system):
                loss, named = self._loss(self._batch(step, number))
                self.accelerator.backward(loss / self.passes)
            self.pending.append({"loss": loss.detach(), **named})
        if self.settings.gradient_clip is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
            self.pending.append({"gradient_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.run.after_step(self.accelerator)
        self.state.step += 1

    def _rate_factor(self, step: int) -> float:
        return rate_factor(self.settings, step, self.steps) * self.state.rate_scale

    def _batch(self, step: int, number: int) -> Batch:
        """The sequences of one pass: processes, and passes within them, share a step's in order."""
        first = step * self.settings.batch_size
        start = first + (self.accelerator.process_index * self.passes + number) * self.sequences
        index = self.order[start : start + self.sequences]
        return self.run.examples.batch(index).to(self.accelerator.device)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        again = self.compiled or self.settings.gradient_checkpointing  # a backward pass computes outside of the context
        with autocast(self.settings), nullcontext() if again else attention_for(batch):
            targets = self.run.targets(batch) if self.run.targets else None
            return self.system(batch, targets)

    def report(self, show: Callable[..., None]) -> None:
        """Log, validate and save, each when its time has come; go back where the loss is not finite."""
        step = self.state.step
        save = step % self.settings.save_every == 0 or step == self.steps
        evaluate = step % self.settings.evaluate_every == 0 or step == self.steps
        if not (save or evaluate or step % self.log_every == 0):
            return
        means = self._means()
        if not math.isfinite(means["loss"]) or ((save or evaluate) and not self._is_sound()):
            self._go_back()
            return
        speed = (
            (step - self.since)
            * self.settings.batch_size
            * self.run.examples.tokens_in_example
            / seconds_since(self.began)
        )
        with together():
            rate = self.settings.learning_rate * self._rate_factor(step - 1)
            record = {"stage": self.run.stage, "step": step, "lr": rate, **means}
            self.work.log({"event": "train", **record, "tokens_per_second": round(speed, 1)})
            show(step, means["loss"], speed)
            if evaluate and self.accelerator.is_main_process:
                show(step, watched=self._validate())
            if save:
                self.state.save()
        if self.settings.track_with:
            self.accelerator.log(means, step=step)
        self._start_clock()

    def _means(self) -> dict[str, float]:
        """Means of what was measured since the last report, over passes and processes: each of those that it was
        measured in, since not every term is for every batch."""
        names = sorted(set(gather_object(list({name: None for found in self.pending for name in found}))))
        sums = torch.zeros(2, len(names), device=self.accelerator.device)
        for found in self.pending:
            for name, value in found.items():
                sums[0, names.index(name)] += torch.as_tensor(value).float().reshape(()).to(sums.device)
                sums[1, names.index(name)] += 1
        self.pending = []
        values, counts = self.accelerator.reduce(sums, reduction="sum").tolist()
        return {name: value / count for name, value, count in zip(names, values, counts, strict=True) if count}

    def _is_sound(self) -> bool:
        """Whether the weights, after the step that made them, still give a finite loss: only then are they kept."""
        with torch.no_grad(), self._eagerly():
            loss, _ = self._loss(self._batch(self.state.step - 1, 0))
        return math.isfinite(self.accelerator.reduce(loss.detach().float(), reduction="mean").item())

    def _go_back(self) -> None:
        step, saved = self.state.step, self.state.saved_step
        if self.state.rate_scale < 1.0:
            raise AbridgedError(
                f"the loss is not finite at step {step}, also at a tenth of the learning rate; the last good "
                f"checkpoint, of step {saved}, is {self.work.state_path}: lower the learning_rate"
            )
        with together():
            self.state.load()
            self.work.forget_metrics_after(self.run.stage, saved)
        self.state.rate_scale = 0.1
        if self.accelerator.is_main_process:
            sentence = f"the loss is not finite at step {step}: back to step {saved}, at a tenth of the learning rate"
            print(sentence, file=sys.stderr)
        self._start_clock()

    def _validate(self) -> dict[str, float]:
        """Measure, log, and keep what is best so far; the number to watch by its name, nothing without a measure."""
        if self.run.validate is None:
            return {}
        self.run.system.eval()
        with torch.no_grad(), autocast(self.settings), self._eagerly():
            measured = self.run.validate()
        self.run.system.train()
        watched = measured.headline  # goes first: that is how the report's curves find it
        number = {watched.name: watched.value}
        self.work.log({"event": "evaluate", "stage": self.run.stage, "step": self.state.step, **number, **measured})
        unbeaten = self.state.best_step == 0 and watched.rank == self.state.best  # training counts
        if watched.rank < self.state.best or unbeaten:
            self.state.best, self.state.best_step = watched.rank, self.state.step
            if self.settings.keep == "best":
                self.state.save_best()
        return number

    def _go_back_to_best(self) -> None:
        self.state.load_best()
        if self.run.validate is None or not self.accelerator.is_main_process:
            return
        self.work.log({"event": "kept", "stage": self.run.stage, "step": self.state.best_step})
        if self.state.best_step == 0:
            sentence = "no validation was better than before training: the weights from before are kept"
            print(f"warning: stage {self.run.stage + 1}: {sentence}", file=sys.stderr)

    def _eagerly(self) -> AbstractContextManager[Any]:
        """Other modes and sizes than training's would each be compiled anew."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _start_clock(self) -> None:
        self.began, self.since = time.perf_counter(), self.state.step

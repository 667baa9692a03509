"""One run of the main job: what `abridged.compress` does, step by step."""

import copy
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abridged.checkpoint.model_card import kind_of
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.data.batch import Batch
from abridged.data.blocks import Blocks
from abridged.data.examples import Examples, Order, Subset
from abridged.errors import AbridgedError
from abridged.evaluation.probe import against_masks, probe_heads
from abridged.families import anatomy_of
from abridged.methods.base import Method
from abridged.models import load_dense, load_tokenizer, public_name, set_checkpointing, set_dropout, weights_hash
from abridged.objectives.base import ObjectiveContext, StudentForward, TeacherOutputs
from abridged.recipe import Recipe, Stage
from abridged.report.collect import collect, hidden_states, picture_heads, picture_tokens, picture_weights, token_ids
from abridged.report.page import write_report
from abridged.tasks import task_for
from abridged.tasks.base import refuse_unlabelled
from abridged.training.hardware import peak_memory
from abridged.training.loop import Run, train
from abridged.training.offline_teacher import OfflineTeacher, cache_teacher
from abridged.training.optimizer import total_steps
from abridged.training.processes import autocast, make_accelerator, together
from abridged.training.record import environment
from abridged.training.state import load_into, on_host, unique_state
from abridged.training.workspace import METRICS, Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Sequences that activation quantisers see before training.
CALIBRATION_SEQUENCES = 16
#: The teacher's perplexity, by weights, data and context: several runs in one process measure it once.
_MEASURED: dict[tuple[str, ...], dict[str, Any]] = {}


class Session:
    """The teacher, the student that is being made of it, and the workspace that makes the run resumable.

    Raises:
        AbridgedError: bad input, in one sentence (see `Workspace`, `load_dense`, `task_for`).
    """

    def __init__(
        self,
        model: str | Path,
        recipe: Recipe,
        data: str | Path,
        output: str | Path,
        columns: tuple[str, ...] | None = None,
        task: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        seed: int | None = None,
        teacher_cache: str | Path | None = None,
    ) -> None:
        if seed is not None:
            recipe = recipe.model_copy(deep=True)
            for stage in recipe.stages:
                stage.training.seed = seed
        self.recipe, self.model_name, self.teacher_cache = recipe, public_name(model), teacher_cache
        accelerator = make_accelerator(recipe.stages[0].training)
        self.main, self.device = accelerator.is_main_process, accelerator.device
        for sentence in recipe.warnings() if self.main else []:
            print(f"warning: {sentence}", file=sys.stderr)
        self.seconds: dict[str, float] = {"training": 0.0}
        self._done = -1
        self._previous: Any = None
        self.facts: dict[str, Any] = {}
        with together():
            self.work = Workspace(output, resume=resume, overwrite=overwrite, main=self.main)
            self._load(model, data, columns, task)
        for sentence in self.task.notes if self.main else []:
            print(sentence, file=sys.stderr)

    def _load(self, model: str | Path, data: str | Path, columns: tuple[str, ...] | None, task: str | None) -> None:
        self._source, self._teacher = model, None
        self.tokenizer = load_tokenizer(model, self.teacher)
        self.anatomy = anatomy_of(self.teacher)
        self.task = task_for(self.teacher, self.tokenizer, data, columns, task)
        for stage in self.recipe.stages:
            refuse_unlabelled(stage.training, stage.objectives, self.teacher)
        self._examples(0)
        self.hash = weights_hash(self.teacher)
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        self.student.config.use_cache = False

    def __enter__(self) -> "Session":
        texts = [self._examples(number).fingerprint() for number in range(len(self.recipe.stages))]
        run = {"recipe": self.recipe.model_dump(mode="json"), "teacher": self.hash, "text": texts}
        with together():
            self.work.__enter__()
            try:
                self.work.check_same_run(run)
            except BaseException:
                self.work.__exit__(None, None, None)
                raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.work.__exit__(kind, error, trace)

    @property
    def teacher(self) -> "PreTrainedModel":
        """The full-precision model, loaded when it is asked for."""
        if self._teacher is None:
            self._teacher = load_dense(self._source).to(self.device).requires_grad_(False)
        return self._teacher

    def remaining_stages(self) -> Iterator[tuple[int, Stage]]:
        """The recipe's stages in order. Those that an interrupted run finished are prepared again but not trained:
        the state that the next one loads replaces their weights."""
        found = self.work.load_state() if self.work.resume else None
        self._done = found[1]["stage"] - 1 if found else -1
        yield from enumerate(self.recipe.stages)

    def prepare(self, number: int, stage: Stage) -> list[Method]:
        """Let the stage's methods change the student; the order in the recipe is the order in which they do."""
        methods: list[Method] = list(stage.methods.values())
        torch.manual_seed(stage.training.seed)
        self._apply(methods, self.student, number)
        self.student.requires_grad_(True)
        set_dropout(self.student, stage.training.dropout or 0.0)
        set_checkpointing(self.student, stage.training.gradient_checkpointing)
        return methods

    def _apply(self, methods: list[Method], model: Any, number: int) -> None:
        """Let methods change a model; each sees what the one before has made of it."""
        for method in methods:
            method.prepare(model, anatomy_of(model), partial(self._calibrate, number))

    def train(self, number: int, stage: Stage, methods: list[Method]) -> None:
        """Train the student on what the stage's objectives ask of it."""
        if number <= self._done:
            return
        settings, examples = stage.training, self._examples(number)

        def penalties() -> dict[str, torch.Tensor]:
            return {name: value for method in methods for name, value in method.penalties(self.student).items()}

        system = StudentForward(self.student, stage.objectives, self._sizes(examples), penalties)
        groups: dict[str, list[nn.Parameter]] = {}
        for method in methods:
            for name, parameters in method.parameter_groups(self.student).items():
                groups.setdefault(name, []).extend(parameters)
        if settings.freeze_weights:
            self.student.requires_grad_(False)
            for parameter in (p for parameters in groups.values() for p in parameters):
                parameter.requires_grad_(True)

        def step_methods(progress: float) -> None:
            for method in methods:
                method.step(self.student, progress)

        began = time.perf_counter()
        with closing(system):
            train(
                Run(
                    system=system,
                    examples=examples,
                    settings=settings,
                    work=self.work,
                    stage=number,
                    targets=self._targets(system, stage, examples) if system.needs_teacher else None,
                    before_step=step_methods,
                    after_step=system.after_step,
                    validate=self.task.validation(self.student, settings),
                    groups=groups,
                    compile=[m.get_submodule(p) for m in (self.student, self._teacher) if m for p in _blocks(m)],
                )
            )
        self.seconds["training"] += time.perf_counter() - began

    def finish(self, number: int, methods: list[Method]) -> None:
        """Let the methods leave behind what will be stored."""
        set_checkpointing(self.student, False)
        following = self.recipe.stages[number + 1 : number + 2]
        teaches = bool(following) and following[0].teacher == "previous"
        if teaches or any(method.reshapes for method in methods):  # a resumed run must find it, to make the same of it
            self._keep_or_load(number)
        for name, method in zip(self.recipe.stages[number].methods, methods, strict=True):
            if facts := method.finish(self.student):
                self.facts[name] = facts
                for note in facts.get("notes", ()) if self.main else ():
                    print(f"warning: {note}", file=sys.stderr)
        if teaches:
            self._previous = copy.deepcopy(self.student).requires_grad_(False).eval()

    def _keep_or_load(self, number: int) -> None:
        """Keep the student on disk as a stage has trained it; of a stage done before a run was resumed, take it up."""
        if number <= self._done:
            load_into(self.student, self.work.load_student(number))
        else:
            self.work.save_student(number, on_host(unique_state(self.student)))

    def save(self) -> dict[str, Any]:
        """Pack the student, measure it as packed, and put checkpoint, report and account at the output."""
        if not self.main:
            return {}
        matrices = picture_weights(self.student, anatomy_of(self.student))
        models = {"teacher": self.teacher, "untrained": self._without_training(), "student": pack_model(self.student)}
        models = {name: model for name, model in models.items() if model is not None}
        metrics = {name: self.measure(model) for name, model in models.items()}
        finished = self.work.folder / self.work.output.name
        record = save_checkpoint(models["student"], finished, self.tokenizer, self._account(metrics))
        batch = self.task.picture()
        report = collect(
            recipe=self.recipe,
            base_model=self.model_name,
            data=self.task.name,
            directory=self.work.output,
            account=record["size"],
            teacher_metrics=metrics["teacher"],
            student_metrics=metrics["student"],
            rounded_metrics=metrics.get("untrained"),
            rounded_name=", ".join([*(m.untrained_name for m in self.recipe.stages[-1].methods.values()), "untrained"]),
            metrics=self.work.metrics(),
            matrices=matrices,
            tokens=picture_tokens(
                self.tokenizer, token_ids(batch), {name: hidden_states(model, batch) for name, model in models.items()}
            ),
            samples=self.task.samples(models),
            heads=self._heads(),
            auto_class=kind_of(record["data"])[0],
            environment=record["environment"],
            seconds=self.seconds,
            peak_memory={"peak memory": record["peak_memory_bytes"]},
        )
        write_report(finished / "report.html", report)
        if (self.work.folder / METRICS).exists():
            shutil.copyfile(self.work.folder / METRICS, finished / METRICS)
        self.work.publish(finished)
        return record

    def _heads(self) -> Any:
        """What the teacher's heads look at and which were removed, where a method says so."""
        masks = next((facts["heads"] for facts in self.facts.values() if facts.get("heads")), None)
        if masks is None:
            return None
        examples = self._examples(-1)
        order = examples.order(0, 4)
        batches = (examples.batch(order[i : i + 4]) for i in range(0, min(CALIBRATION_SEQUENCES, len(examples)), 4))
        found = against_masks(probe_heads(self.teacher, batches, self.tokenizer.all_special_ids), masks)
        return picture_heads(found)

    def _account(self, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What abridged.json says of the run; saving adds sizes and hashes."""
        return {
            "kind": "compress",
            "recipe": self.recipe.model_dump(mode="json"),
            "teacher": {"name": self.model_name, "hash": self.hash},
            "data": {"name": public_name(self.task.name), **self.task.facts()},
            "seed": self.recipe.stages[0].training.seed,
            "steps": [total_steps(stage.training, self._examples(i)) for i, stage in enumerate(self.recipe.stages)],
            "metrics": metrics,
            "loss_percent": loss_percent(metrics["teacher"], metrics["student"]),
            **({"methods": self.facts} if self.facts else {}),
            "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(),
            "environment": environment(),
        }

    def _examples(self, number: int) -> Examples:
        settings = self.recipe.stages[number].training
        examples: Examples = self.task.examples(settings)
        return examples if settings.data_share == 1 else Subset(examples, settings.data_share)

    def _sizes(self, examples: Examples) -> ObjectiveContext:
        return ObjectiveContext.of(
            self.student,
            examples,
            teacher_hidden_size=self.anatomy.hidden_size,
            layers=self.anatomy.layers,
            device=self.device,
            hidden_units=getattr(self.student, "hidden_units", None),
        )

    def _targets(self, system: StudentForward, stage: Stage, examples: Examples) -> Callable[[Batch], TeacherOutputs]:
        """What says what the teacher has to say of a batch: the teacher, or its cached answers without it."""
        if self.teacher_cache is not None and stage.teacher == "previous":
            raise AbridgedError(
                "a teacher cache has the original teacher's answers, and a stage asks for the previous one's"
            )
        if self.teacher_cache is None:
            teacher = self._previous if stage.teacher == "previous" else self.teacher
            return lambda batch: system.teach(teacher, batch)
        if not isinstance(examples, Blocks):
            raise AbridgedError("a teacher cache holds answers on a text: train an encoder-decoder without one")
        parts = frozenset().union(*(o.cached_parts() for s in self.recipe.stages for o in s.objectives.values()))
        folder = Path(self.teacher_cache) / f"context-{examples.context}"
        temperature = getattr(stage.objectives.get("logits"), "temperature", 1.0)
        with autocast(stage.training):
            cache_teacher(self.teacher, examples, folder, parts=parts, temperature=temperature, show=self.main)
        self._teacher = None  # training does without it; what comes after loads it again
        return OfflineTeacher(folder, examples, self.hash)

    def _calibrate(self, number: int, model: nn.Module, tokens: int | None = None) -> None:
        """Run some examples of a stage through a model: a few, or one batch of about so many tokens."""
        examples, training = self._examples(number), self.recipe.stages[number].training
        if tokens is None:
            order = examples.order(training.seed, 4)
            chosen = [order[start : start + 4] for start in range(0, CALIBRATION_SEQUENCES, 4)]
        else:  # of all lengths; padding may be three times as much
            count = min(tokens / examples.tokens_in_example, 4 * tokens / examples.context, len(examples))
            chosen = [Order(len(examples), training.seed)[0 : max(1, round(count))]]
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), nullcontext() if tokens is None else autocast(training):
                for index in chosen:
                    model(**examples.batch(index).to(self.device).model_inputs, use_cache=False)
        finally:
            model.train(was_training)

    def _without_training(self) -> Any:
        """The teacher under the last stage's methods, and what reshaped it before, in their simplest untrained form."""
        last = self.recipe.stages[-1]
        methods = [
            method.untrained()
            for stage in self.recipe.stages
            for method in stage.methods.values()
            if stage is last or method.reshapes
        ]
        if not methods:
            return None
        rounded = copy.deepcopy(self.teacher)
        for method in methods:
            self._apply([method], rounded, len(self.recipe.stages) - 1)
            method.finish(rounded)
        return pack_model(rounded.eval())

    def measure(self, model: Any) -> dict[str, Any]:
        """`model` on the test part (see `Task.measure`)."""
        settings = self.recipe.stages[-1].training
        if model is not self._teacher:
            return self.task.measure(model, "test", settings)
        key = (self.hash, self._examples(-1).fingerprint(), self.task.name)
        if key not in _MEASURED:
            _MEASURED[key] = self.task.measure(model, "test", settings)
        return _MEASURED[key]


def _blocks(model: Any) -> list[str]:
    """Paths of a model's repeated blocks; the student may have fewer than the teacher."""
    return anatomy_of(model).blocks


def loss_percent(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, float]:
    """By how many per cent perplexities rose, and ROUGE and scores, as far as there are any, fell."""
    lost = {k: 100 * (student[k] / teacher[k] - 1) for k in ("perplexity", "word_perplexity") if k in teacher}
    before = {**teacher.get("rouge", {}), "score": teacher.get("score")}
    after = {**student.get("rouge", {}), "score": student.get("score")}
    kept = ("rouge1", "rouge2", "rougeL", "score")
    return lost | {key: 100 * (1 - after[key] / before[key]) for key in kept if before.get(key)}

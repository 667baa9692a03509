"""A job whose inputs are open: the model, what the data are to it, and the folder that the run works in."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from abridged import families
from abridged.checkpoint.adapters import read_adapter
from abridged.checkpoint.files import is_adapter
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name, resolve
from abridged.core.record import environment
from abridged.core.settings import TrainingSettings
from abridged.core.settings_text import apply_overrides
from abridged.core.text import printable
from abridged.data.examples import Examples, Subset
from abridged.data.opening import open_data
from abridged.data.text import MLM
from abridged.families.kinds import LabelSet, context_of
from abridged.families.standin import plain_config, skeleton
from abridged.methods.base import check_by_parts, check_needs
from abridged.methods.prompt_tuning import PromptTuning
from abridged.models.create import create_from_config
from abridged.models.described import described
from abridged.models.load import (
    is_encoder,
    is_packed,
    load_any,
    load_dense,
    load_tokenizer,
    rounding_of,
    weights_hash,
)
from abridged.models.streamed import Weights
from abridged.models.video.load import load_video_model
from abridged.recipe import Recipe, counted_in_steps
from abridged.runtime.prompt import keep_room, prompt_of
from abridged.tasks import task_for
from abridged.tasks.base import refuse_unlabelled
from abridged.training import gates
from abridged.training.dry import stored_size
from abridged.training.job import Job
from abridged.training.modes import make_trainable
from abridged.training.plan import check_frozen, check_whole
from abridged.training.processes import check_trackers, together
from abridged.training.runners import runner_of
from abridged.training.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Opened:
    """Opening a job only looks; entering it claims the folder beside the output, or refuses to resume another run's.

    Attributes:
        job: what was asked for.
        recipe: as run: with overrides, seed, and where a job to fine-tune has none, that of hard labels.
        model_name: as others may read it.
        main, device: of this process.
        data: opened once, before the model is loaded.
        tokenizer, view, task, hash: of the model, `hash` of its weights.
        rounding: a sentence on how the model was rounded before, where it was.
        from_scratch: whether the model was made from a description, and has learned nothing.
        work: the workspace.
        base: the packed directory that adapters stand beside; None where the model is in full precision.
        has_adapters: whether the model that was named is such adapters, to be folded.
        weights: where they are streamed from disk; None where models are held whole.

    Raises:
        AbridgedError: bad input, in one sentence (see `Workspace`, `load_dense`, `task_for`).
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase

    def __init__(self, job: Job) -> None:
        self.job, self.model_name = job, public_name(job.model)
        recipe = job.loaded_recipe()
        for number, stage in enumerate(recipe.stages if recipe else ()):
            where = f"stage {number + 1}" if stage.trains else f"stage {number + 1}, which takes no steps,"
            check_needs(
                stage.methods, runner_of(stage).gives(stage), "the runner blocks" if stage.runner == "blocks" else where
            )
            if stage.runner == "blocks":
                check_by_parts(stage.methods)
        process = PartialState(cpu=not torch.cuda.is_available())
        self.main, self.device = process.is_main_process, process.device
        self._say(f"warning: {sentence}" for sentence in job.warnings(recipe))
        with together():
            _refuse_cache_in_output(job)
            recipe_file = job.recipe if isinstance(job.recipe, str | Path) else None
            inputs = (resolve(job.model), job.data, recipe_file, job.teacher_cache)
            self.work = Workspace(job.output, resume=job.resume, overwrite=job.overwrite, main=self.main, inputs=inputs)
            self._open(recipe)
        self._say(self.task.notes)
        self.rounding = None if self.from_scratch else rounding_of(job.model)
        self._say(f"note: {sentence}" for sentence in [self.rounding] if sentence)

    def _open(self, recipe: Recipe | None) -> None:
        job = self.job
        self._asked = recipe
        self.base = base_of(job)
        self.has_adapters = self.base is not None and is_adapter(resolve(job.model))
        self.from_scratch = job.kind == "finetune" and str(job.model).endswith((".yaml", ".yml"))
        self.data = open_data(job.data, job.columns, job.task)
        self._teacher: PreTrainedModel | None
        self._refuse_unread(recipe)
        model, settings = self._open_model(recipe)
        self.view = families.view(model)
        self.task = task_for(model, self.tokenizer, self.data)
        self.task.data.check_to_learn()
        self.recipe = recipe or self._plain(settings)
        methods = [method for stage in self.recipe.stages for method in stage.methods.values()]
        if self.base is None and _prompt_tokens(recipe):
            raise AbridgedError(f"{job.model} is not packed: a learned prompt stands beside a packed model")
        if self.main:  # it writes files; what it refuses ends the other processes, too
            gates.refuse(type(model), model.config, methods)
        for stage in self.recipe.stages:
            refuse_unlabelled(stage.training, stage.objectives, model)
            check_trackers(stage.training.track_with)
        self.examples(0)
        self.hash = weights_hash(model) if self.weights is None else self.weights.fingerprint()

    def _open_model(self, recipe: Recipe | None) -> tuple[PreTrainedModel, dict[str, Any]]:
        """The model, or where it is never held whole one without weights; and the settings that come with it."""
        self.weights = None
        if recipe is None or not recipe.streamed:
            self._teacher, self.tokenizer, settings = self._load()
            return self._teacher.to(self.device).requires_grad_(False), settings
        runner = recipe.stages[0].runner
        if self.job.kind != "compress" or self.data.kind == "videos":
            raise AbridgedError(f"the runner {runner} compresses models of texts")
        if PartialState().num_processes > 1 and not all(stage.in_any_order for stage in recipe.stages):
            raise AbridgedError(
                "several processes share blocks out only where none waits for another, with one method, "
                "training.steps=0 and blocks.inputs=full: run this recipe in one process"
            )
        self.weights, self._teacher = Weights(self.job.model, self.device), None
        if runner == "frozen":
            check_frozen(recipe, self.weights.parameters)
        else:
            stored_size(type(self.weights.model), self.weights.model.config, recipe)  # what does not fit ends here
        self.tokenizer = load_tokenizer(self.job.model, self.weights.model)
        return self.weights.model, {}

    def _refuse_unread(self, recipe: Recipe | None) -> None:
        """Raise AbridgedError, before weights are read, for a model that is too large to be held twice where it would
        be, or that would be left half as it is."""
        if recipe is None or not recipe.has_methods or self.from_scratch:
            return
        try:
            kind, config = described(self.job.model)
        except AbridgedError:  # loading says what is wrong
            return
        if not recipe.streamed:
            check_whole(sum(p.numel() for p in skeleton(kind, plain_config(config)).parameters()))
        if not self.job.allow_uncompressed:
            families.refuse_uncompressed(families.view_of_config(kind, config))

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
        """The model, its tokenizer, and the settings that come with it: those of a .yaml file, none else."""
        job, labels, head = self.job, None, None
        if self.base is not None:
            model = self._load_packed()
            return model, load_tokenizer(job.model, model), {}
        if self.data.kind == "videos":
            torch.manual_seed(job.seed or 0)
            changes = {} if self._asked is None else self._asked.model
            model = load_video_model(job.model, changes, answers=not self.data.as_videos().has_captions)
            return model, load_tokenizer(job.model, model), {}
        if self.from_scratch:
            return create_from_config(Path(job.model), lambda: self.data.words, job.seed)
        if job.kind == "finetune":
            labels, head = self._head()
            torch.manual_seed(job.seed or 0)  # a new head is drawn at random
        model = load_dense(job.model, labels, head)
        return model, load_tokenizer(job.model, model), {}

    def _head(self) -> tuple[LabelSet | None, str | None]:
        """What a model gets a head for to be fine-tuned on the data: labels, or what `load_dense` calls another one."""
        if self.data.kind == "questions":
            return None, "QuestionAnswering"
        if self.data.kind == "tags":
            tagged = self.data.as_tagged()
            tagged.check_to_learn()
            return LabelSet(tagged.tags, tokens=True), None
        encoder = is_encoder(self.job.model)
        if self.data.kind == "text" and (encoder or self.job.task == MLM):
            if not encoder:
                raise AbridgedError(f"{self.model_name} goes on with texts: only an encoder learns to fill masks")
            return None, "MaskedLM"
        if self.data.task is not None or encoder:
            labelled = self.data.as_labelled()
            labelled.check_to_learn()
            return LabelSet(labelled.labels), None
        return None, None

    def _load_packed(self) -> PreTrainedModel:
        """A packed model as it is, and where it is a directory of adapters, with them.

        Raises:
            AbridgedError: the recipe trains more than adapters, which a packed model could not store; or the data have
                other labels.
        """
        job, recipe = self.job, self._asked
        if self.has_adapters:
            if not job.fold or recipe is not None:
                raise AbridgedError(
                    f"{job.model} holds adapters: train others beside their base, {self.base}, or --fold these into "
                    "it, without a recipe"
                )
        elif recipe is None or not recipe.adapts:
            raise AbridgedError(
                f"{job.model} is packed, and its codes have no gradients: train adapters beside them (--recipe lora)"
            )
        if self.data.kind == "videos":
            raise AbridgedError("adapters beside packed weights are for models of texts")
        model = load_any(job.model)
        tokens = _prompt_tokens(recipe)
        if job.fold and (tokens or prompt_of(model) is not None):
            raise AbridgedError(
                "a learned prompt stands before the text, and cannot be folded into codes: leave --fold out"
            )
        if tokens:
            keep_room(model.config, tokens)  # before anything reads how long a text may be
            if (room := context_of(model.config)) < 2:
                raise AbridgedError(f"a prompt of {tokens} tokens leaves texts {max(0, room)} of the model's positions")
        labels, _ = self._head()
        if labels is not None and not labels.fit(model.config):
            own = ", ".join(str(label) for label in model.config.label2id)
            raise AbridgedError(f"{job.model} is packed with its head, for the labels {own}: the data have others")
        return model

    def _plain(self, described: dict[str, Any]) -> Recipe:
        """Hard labels, by the task's settings, or those that came with the model."""
        settings = {**self.task.defaults, **described}
        overrides = [*counted_in_steps(self.job.overrides), *self.job.overrides]
        training = apply_overrides(TrainingSettings, settings, overrides)
        if self.job.seed is not None:
            training.seed = self.job.seed
        if self.base is not None:  # adapters that were trained before are folded as they are
            training.epochs, training.steps = None, 0
        return Recipe.plain(training)

    def __enter__(self) -> Opened:
        libraries = environment()["versions"]
        run = {
            "version": libraries.pop("abridged"),
            "kind": self.job.kind,
            "recipe": self.recipe.model_dump(mode="json"),
            "teacher": self.hash,
            "text": [self.examples(number).fingerprint() for number in range(len(self.recipe.stages))],
            "validation or test text": self.data.fingerprint,
            "teacher cache": self.job.teacher_cache is not None,
            "dtype": self.job.dtype,
            **({"fold": True} if self.job.fold else {}),
        }
        with together():
            self.work.__enter__()
            try:
                changed = self.work.check_same_run(run, libraries)
            except BaseException:
                self.work.__exit__(None, None, None)
                raise
        self._say(f"note: {sentence}" for sentence in changed)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.work.__exit__(kind, error, trace)

    @property
    def teacher(self) -> PreTrainedModel:
        """The model as it came, loaded when it is asked for; where weights are streamed, a block when it runs."""
        if self._teacher is None and self.weights is not None:
            self._teacher = self.weights.on_demand(copy.deepcopy(self.weights.model), self.view.blocks)
        if self._teacher is None:
            self._teacher = self._load()[0].to(self.device).requires_grad_(False)
        return self._teacher

    def release_teacher(self) -> None:
        """Let the teacher go until it is asked for again."""
        self._teacher = None

    def student(self) -> PreTrainedModel:
        """What is to be trained: a copy of the teacher, or itself where nobody will ask for the teacher again."""
        if self.weights is not None:
            student = copy.deepcopy(self.weights.model)
            student.config.use_cache = False
            if self.recipe.stages[0].runner == "blocks":  # of which parts will take their places
                return student
            return self.weights.on_demand(student, self.view.blocks)
        teacher = self.teacher
        needed = self.job.kind == "compress" or self.recipe.has_methods or self.recipe.needs_teacher
        if not needed:
            self.release_teacher()
        student = copy.deepcopy(teacher) if needed else teacher
        student.config.use_cache = False
        return make_trainable(student)

    def examples(self, number: int) -> Examples:
        """What a stage reads."""
        settings = self.recipe.stages[number].training
        examples: Examples = self.task.examples(settings)
        return examples if settings.data_share == 1 else Subset(examples, settings.data_share)

    def _say(self, sentences: Iterable[str]) -> None:
        for sentence in sentences if self.main else ():
            print(printable(sentence), file=sys.stderr)


def _prompt_tokens(recipe: Recipe | None) -> int:
    """How many tokens a recipe lets stand before every text."""
    found = [stage.methods.get("prompt_tuning") for stage in (recipe.stages if recipe else ())]
    return sum(method.tokens for method in found if isinstance(method, PromptTuning))


def base_of(job: Job) -> Path | None:
    """The packed directory that a job to fine-tune begins with, or the base of the adapters that it names; None for any
    other model.

    Raises:
        AbridgedError: the adapters or their base are not as they were written; or adapters are to be folded into a
            model that is not packed.
    """
    where = resolve(job.model)
    if job.kind == "finetune" and is_packed(where):
        return read_adapter(where).base if is_adapter(where) else Path(where)
    if job.fold:
        raise AbridgedError(f"{job.model} is not packed: what is trained is added to its weights without --fold")
    return None


def _refuse_cache_in_output(job: Job) -> None:
    """Raise AbridgedError for a teacher cache that would be in the way of the result."""
    output, cache = (Path(path).expanduser().absolute() for path in (job.output, job.teacher_cache or "/"))
    if output in (cache, *cache.parents):
        raise AbridgedError(f"the teacher cache {cache} would be in the output {output}: choose another folder")

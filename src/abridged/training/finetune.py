"""Trains a full-precision model on a person's text: the teacher that a student is made from."""

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from abridged.data.examples import Examples
from abridged.data.labelled import load_labelled
from abridged.data.pairs import load_pairs, looks_like_pairs
from abridged.data.text import load_text
from abridged.errors import AbridgedError
from abridged.families import anatomy_of
from abridged.models import (
    LabelSet,
    create_from_config,
    is_encoder,
    load_dense,
    load_tokenizer,
    public_name,
    set_checkpointing,
    set_dropout,
    weights_hash,
)
from abridged.objectives.base import ObjectiveContext, StudentForward
from abridged.objectives.settings import Labels
from abridged.settings_text import apply_overrides
from abridged.tasks import Task, task_for, two_columns
from abridged.tasks.base import refuse_unlabelled
from abridged.training.loop import Run, train
from abridged.training.optimizer import total_steps
from abridged.training.processes import together
from abridged.training.record import environment
from abridged.training.settings import TrainingSettings
from abridged.training.workspace import METRICS, Workspace

OBJECTIVES = {"labels": Labels()}


def finetune(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Train `model` on `data` with hard labels, and write a Hugging Face directory to `output`.

    An encoder-decoder learns from pairs of texts, or, where `data` is one text, to restore it from noise, as BART does;
    an encoder learns to label texts.

    Args:
        model: a hub name, a directory, `bundled`, or a .yaml file that describes a model to train from scratch.
        columns: of rows, which are source and target, or (text, label), or (text, second text, label).
        task: one of GLUE's; the model is given a head for its labels.
        overrides: `key=value` settings of `TrainingSettings`, such as `epochs=2` or `learning_rate=1e-3`.
        dtype: what the weights are stored in, `float32` or `float16`.

    Returns:
        The record that is also in OUTPUT/abridged.json: settings, data, and perplexity before and after.

    Raises:
        AbridgedError: bad input, or a fault that the sentence names; an interrupted run can go on with `resume`.

    Where there are several processes, the main one alone measures, writes, and returns more than {}.
    """
    if dtype not in ("float32", "float16"):
        raise AbridgedError(f"dtype must be float32 or float16, not {dtype}")
    main = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    with together():
        work = Workspace(output, resume=resume, overwrite=overwrite, main=main)
        dense, tokenizer, described = _model(model, data, columns, task, seed)
        work_on = task_for(dense, tokenizer, data, columns, task)
        settings = apply_overrides(TrainingSettings, _length({**work_on.defaults, **described}, overrides), overrides)
        settings = settings.model_copy(update={"seed": settings.seed if seed is None else seed})
        anatomy = anatomy_of(dense)
        refuse_unlabelled(settings, OBJECTIVES, dense)
        examples = work_on.examples(settings)
        validate = work_on.validation(dense, settings)
    for sentence in work_on.notes if main else ():
        print(sentence, file=sys.stderr)
    if settings.dropout is not None:
        set_dropout(dense, settings.dropout)
    with ExitStack() as stack:
        with together():
            stack.enter_context(work)
            run = {"model": weights_hash(dense), "settings": settings.model_dump(), "text": examples.fingerprint()}
            work.check_same_run(run)
        before = work_on.measure(dense, "validation", settings) if main and not described else None
        sizes = ObjectiveContext.of(dense, examples)
        set_checkpointing(dense, settings.gradient_checkpointing)
        train(
            Run(
                system=StudentForward(dense, OBJECTIVES, sizes),
                examples=examples,
                settings=settings,
                work=work,
                validate=validate,
                compile=[dense.get_submodule(path) for path in anatomy.blocks],
            )
        )
        set_checkpointing(dense, False)
        if not main:
            return {}
        with torch.no_grad():  # what is measured is what is stored
            for parameter in dense.parameters():
                parameter.copy_(parameter.to(getattr(torch, dtype)))
        record = _record(model, work_on, settings, work, examples)
        record["validation"] = {"before": before, "after": work_on.measure(dense, "validation", settings)}
        record["test"] = work_on.measure(dense, "test", settings) if work_on.has_test else None
        work.publish(_write(dense.to(getattr(torch, dtype)), tokenizer, work, record))
    return record


def _model(
    model: str | Path, data: str | Path, columns: tuple[str, ...] | None, task: str | None, seed: int | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and the settings that come with them: those of a .yaml file, none else."""
    if str(model).endswith((".yaml", ".yml")):
        return create_from_config(Path(model), lambda: _text(data, two_columns(columns)), seed)
    labels = None
    if task != "squad" and (task is not None or is_encoder(model)):
        labels = LabelSet(load_labelled(data, task, columns).labels)
    torch.manual_seed(seed or 0)  # a new head is drawn at random
    dense = load_dense(model, labels, answers=task == "squad")
    return dense, load_tokenizer(model, dense), {}


def _text(data: str | Path, columns: tuple[str, str] | None) -> str:
    """All that there is to learn a tokenizer on."""
    if looks_like_pairs(data, columns):
        return "\n".join(f"{pair.source}\n{pair.target}" for pair in load_pairs(data, columns).train)
    return load_text(data).train


def _length(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Without their epochs if steps are asked for: else what was asked for would have no effect."""
    asked = {override.partition("=")[0].strip() for override in overrides}
    return {**settings, "epochs": None} if "steps" in asked and "epochs" not in asked else settings


def _record(
    model: str | Path, task: Task, settings: TrainingSettings, work: Workspace, examples: Examples
) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "model": public_name(model),
        "data": public_name(task.name),
        "settings": settings.model_dump(),
        "steps": total_steps(settings, examples),
        **task.facts(),
        "curve": [m for m in work.metrics() if m["event"] == "evaluate"],
        "environment": environment(),
    }


def _write(model: Any, tokenizer: Any, work: Workspace, record: dict[str, Any]) -> Path:
    finished = work.folder / work.output.name
    model.config.use_cache = True
    model.save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    (finished / "abridged.json").write_text(json.dumps(record, indent=1))
    if (work.folder / METRICS).exists():
        shutil.copyfile(work.folder / METRICS, finished / METRICS)
    return finished

"""From a model's name, a size and some data to a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.data.examples import Examples
from abridged.data.opening import open_data
from abridged.models.described import described
from abridged.models.load import load_dense, load_tokenizer
from abridged.planning.limits import Limits
from abridged.planning.machine import measure
from abridged.planning.plan import Plan, Planner, best, check_compresses, front_of, made_before, make_recipe
from abridged.planning.pruned import SHARES, pruned, pruning
from abridged.planning.sensitivity import Text, Way
from abridged.planning.words import size_in_bytes
from abridged.recipe import Recipe
from abridged.tasks import Task, task_for
from abridged.training import gates
from abridged.training.job import Job
from abridged.training.plan import Work, seconds_per_token
from abridged.training.workspace import Workspace

_AT_ONCE = 1024  #: tokens that are read in one batch, about


TOKENS = 2048  #: of the data on which sensitivity is found, unless somebody says otherwise


def planned(job: Job) -> Job:
    """A job with a recipe for its size in place of the size; an interrupted one goes on with the recipe that it had.

    Raises:
        AbridgedError: see `make_plan`; or the output cannot be written.
    """
    if job.size is None:
        return job
    work = Workspace(job.output, resume=job.resume, overwrite=job.overwrite, inputs=(resolve(job.model), job.data))
    frame = job.loaded_recipe()
    assert frame is not None
    asked = job.asked_of_plan
    recipe = made_before(work.interrupted_recipe(), frame, size_in_bytes(job.size), asked)
    if recipe is None:
        recipe = make_plan(job.model, job.size, job.data, frame, columns=job.columns, task=job.task, **asked).recipe
    return replace(job, recipe=recipe, overrides=(), size=None, speed=None, memory=None, prune=False)


def make_plan(
    model: str | Path,
    size: int | str,
    data: str | Path,
    recipe: Recipe,
    *,
    way: Way = "interpolated",
    tokens: int = TOKENS,
    speed: str | float | None = None,
    memory: str | int | None = None,
    prune: bool = False,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
) -> Plan:
    """See `abridged.pipeline.plan`."""
    asked: dict[str, Any] = {"speed": speed, "memory": memory, "prune": prune}
    wanted, limits = size_in_bytes(size), Limits.of(speed, memory)
    if tokens < 1:
        raise AbridgedError(f"a plan reads at least one token, not {tokens}")
    kind, config = described(model)
    view = families.view_of_config(kind, config)
    planner = Planner(kind, config, view, recipe)
    check_compresses(wanted, planner.dense_bytes)
    if not prune:
        planner.check(wanted)
    opened = open_data(data, columns, task)
    if opened.kind == "videos":
        raise AbridgedError("a plan compares what models answer to texts: it is not for videos yet")
    dense = load_dense(model)
    if (own := families.view(dense)).matrices != view.matrices:  # such as a head of its own that the config calls tied
        planner = Planner(kind, config, own, recipe, dense)
    read = task_for(dense, load_tokenizer(model, dense), opened)
    read.data.check_to_learn()
    read.data.announce()
    examples = read.examples(recipe.stages[-1].training)
    text = Text(dense, batches(examples, tokens))
    planner.learn(text, way)
    models = {1.0: dense}
    planners = [planner]
    if prune:
        gates.refuse(kind, config, [pruning(SHARES[0])])
        fit = batches(examples, pruning(SHARES[0]).fit_tokens)
        models |= {share: pruned(dense, share, fit) for share in SHARES}
    for share, small in models.items():
        if share < 1:
            loss = text.divergence(small)
            planners.append(Planner(kind, config, families.view(small), recipe, small, share, loss))
            planners[-1].learn(Text(small, text.batches), way)
    for one in planners if limits.given else ():
        small, of = models[one.share], one.at(max(wanted, one.smallest.file_bytes)).assignment
        one.limit(limits, measure(dense, recipe, one.sizes, one.forms, of, speed=limits.of_speed, small=small))
    planner, point = best(planners, wanted)
    front = front_of(planners, more=(wanted,))
    return Plan(
        size=wanted,
        point=point,
        front=front,
        matrices=planner.matrices,
        recipe=make_recipe(planner, wanted, point, front, {key: value for key, value in asked.items() if value}),
        dense_bytes=planners[0].dense_bytes,
        way=way,
        tokens=planner.tokens,
        seconds=_seconds(dense, read, recipe),
    )


def batches(examples: Examples, tokens: int) -> list[Any]:
    """Batches of about so many tokens of the examples, drawn by a fixed seed."""
    count = max(1, min(len(examples), round(tokens / examples.tokens_in_example)))
    at_once = max(1, min(count, round(_AT_ONCE / examples.tokens_in_example)))
    order = examples.order(0, at_once)
    return [examples.batch(order[start : min(start + at_once, count)]) for start in range(0, count, at_once)]


def _seconds(model: Any, task: Task, recipe: Recipe) -> float:
    """What the training of a recipe takes on this machine, about."""
    trained = [stage.training for stage in recipe.stages if stage.trains]
    if not trained:
        return 0.0
    works = [Work.of(settings, task.examples(settings)) for settings in trained]
    per_token = seconds_per_token(model, task.examples(trained[0]), trained[0])
    return sum(work.steps * work.tokens for work in works) * per_token

"""Scales trained through all of a packed model, through the command line: what it learns, killed and resumed."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import isolated
from abridged.core.errors import AbridgedError
from abridged.recipe import Recipe
from isolated import Stop
from packed import GROUPS

QUANTIZE = {
    "weights": {"bits": 2, **GROUPS},
    "embeddings": {"bits": 4, **GROUPS},
    "activations": {"bits": None},
    "unquantized": "float16",
}
FIRST = {"runner": "blocks", "methods": {"quantize": QUANTIZE}, "objectives": {}, "training": {"steps": 0}}
TRAINING = {
    "steps": 12,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "learning_rates": {"scale": 3e-2},
    "save_every": 4,
    "evaluate_every": 6,
    "mixed_precision": "no",
    "gradient_checkpointing": True,
}
SECOND = {"runner": "scales", "methods": {}, "objectives": {"logits": {}}, "training": TRAINING}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, teacher, text):
    """Those of compress, for a recipe of both stages."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "both", "stages": [FIRST, SECOND]}))
    return ["compress", teacher, "--recipe", recipe, "--data", text]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments):
    return isolated.student_of(*arguments, folder=tmp_path_factory.mktemp("uninterrupted"))


def lines_of(folder, event):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def test_codes_stay_and_less_is_lost(tmp_path, arguments, uninterrupted):
    """Where no step is taken, the student is what the blocks made of it."""
    alone = isolated.student_of(*arguments, "--set", "stages.1.steps=0", folder=tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (alone, uninterrupted))
    assert before.keys() == after.keys()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same == {name for name in before if not name.endswith(("_scale", ".bias")) and "ln_" not in name}
    losses = [line["loss"] for line in lines_of(uninterrupted, "train")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())


POINTS = {
    "as the parts are put together": Stop("abridged.training.runners.blocks:assemble", 1, "after"),
    "in the first steps": Stop("abridged.training.loop:Trainer.step", 3),
    "after some were saved": Stop("abridged.training.loop:Trainer.step", 7),
    "before publishing": Stop("abridged.training.workspace:Workspace.publish"),
}
FAST = ("after some were saved",)
#: Steps that a resumed run has to do.
LEFT = dict(zip(POINTS, (12, 12, 8, 0), strict=True))


@pytest.mark.parametrize("point", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_killed_and_resumed(tmp_path, arguments, uninterrupted, point):
    more = Stop("abridged.training.loop:Trainer.step", LEFT[point] + 1)
    student = isolated.killed_and_resumed(arguments, tmp_path, POINTS[point], until=more)
    assert (student / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert [line["step"] for line in lines_of(student, "train")] == list(range(1, 13))


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([SECOND], "a stage of the runner blocks must be the only one"),
        ([FIRST, SECOND, SECOND], "a stage of the runner blocks must be the only one"),
        ([FIRST, {**SECOND, "methods": {"quantize": {}}}], "a stage of the runner scales has no methods"),
        ([FIRST, {**SECOND, "teacher": "previous"}], "learns from the original teacher"),
        ([FIRST, {**SECOND, "objectives": {}}], "needs at least one objective"),
    ],
)
def test_what_the_runner_cannot_do_is_refused(stages, told):
    with pytest.raises(AbridgedError, match=told):
        Recipe.load({"name": "t", "stages": stages})

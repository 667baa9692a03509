"""Stopped at any point and resumed, a run makes the student of an uninterrupted one, bit for bit."""

import json
import signal

import pytest
import yaml

import isolated
from isolated import Stop
from teachers import make_recipe

STEP = "abridged.training.loop:Trainer.step"


@pytest.fixture(scope="module")
def files(tmp_path_factory, text, teacher):
    """The arguments of compress, for a recipe of two stages."""
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(stages=2)))
    return ["compress", teacher, "--recipe", recipe, "--data", text]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, files):
    return isolated.student_of(*files, folder=tmp_path_factory.mktemp("uninterrupted"))


def steps_of(directory):
    """What metrics.jsonl says, but for how long things took."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


POINTS = {
    "in the first stage": Stop(STEP, 4),
    "in the second stage": Stop(STEP, 11),
    "in the second stage, before its first checkpoint": Stop(STEP, 8),
    "between the stages": Stop("abridged.training.stages:Stages.run_stage", 2, signal=signal.SIGINT),
    "while writing a checkpoint": Stop("abridged.core.atomic:settle", 9),
    "after replacing a checkpoint": Stop("abridged.training.workspace:Workspace.save_state", 6, "after"),
    "while validating": Stop("abridged.evaluation.perplexity:negative_log_likelihood", 3, signal=signal.SIGINT),
    "while saving": Stop("abridged.checkpoint.save:_place"),
    "while writing the report": Stop("abridged.training.publisher:write_report"),
    "before publishing": Stop("abridged.training.workspace:Workspace.publish"),
    "while publishing": Stop("os:rename", 2, "after"),
    "by a person, in a step": Stop(STEP, 9, signal=signal.SIGINT),
    "by a person, in the middle of a step": Stop("torch.autograd:backward", 5, "after", signal.SIGINT),
}


@pytest.mark.parametrize("point", POINTS)
def test_stopped_and_resumed(tmp_path, files, uninterrupted, point):
    student, stop = tmp_path / "student", POINTS[point]
    first = isolated.abridged(*files, "--output", student, folder=tmp_path / "first", stop=stop)
    if stop.signal == signal.SIGINT:
        assert (first.code, first.stderr.splitlines()[-1][:21]) == (130, "abridged: interrupted")
    else:
        assert first.code == -stop.signal, first.stderr
    second = isolated.abridged(*files, "--output", student, "--resume", folder=tmp_path / "second")
    assert second.code == 0, second.stderr
    assert (student / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert steps_of(student) == steps_of(uninterrupted)
    assert sorted(p.name for p in student.iterdir()) == sorted(p.name for p in uninterrupted.iterdir())
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_every_step_is_logged_once(uninterrupted):
    done = [(m["event"], m["stage"], m["step"]) for m in steps_of(uninterrupted)]
    trained = [("train", stage, step) for stage in (0, 1) for step in range(1, 7)]
    assert [d for d in done if d[0] == "train"] == trained
    assert [d for d in done if d[0] == "evaluate"] == [("evaluate", stage, step) for stage in (0, 1) for step in (3, 6)]


def test_resuming_needs_the_same_run(tmp_path, files):
    student = tmp_path / "student"
    isolated.abridged(*files, "--output", student, folder=tmp_path / "first", stop=Stop(STEP, 4))
    kept = (tmp_path / "student.partial" / "state.safetensors").read_bytes()
    changed = ["--output", student, "--resume", "--set", "stages.0.learning_rate=1e-4"]
    ended = isolated.abridged(*files, *changed, folder=tmp_path / "second")
    assert ended.code == 1
    assert "its recipe differ from the interrupted run's" in ended.stderr
    again = isolated.abridged(*files, "--output", student, folder=tmp_path / "third")
    assert again.code == 1
    assert "add --resume to go on with it, or --overwrite to begin anew" in again.stderr
    assert (tmp_path / "student.partial" / "state.safetensors").read_bytes() == kept
    assert not student.exists()


def test_nothing_is_left_of_a_finished_run(uninterrupted, files, tmp_path):
    ended = isolated.abridged(*files, "--output", uninterrupted, "--resume", folder=tmp_path / "again")
    assert ended.code == 1
    assert "student is finished: nothing is left to resume" in ended.stderr


def test_best_weights_survive_an_interruption(tmp_path, text, teacher, recipe_file):
    recipe = recipe_file(keep="best", learning_rate=0.3, evaluate_every=1, save_every=4)  # it soon gets worse
    compress = ["compress", teacher, "--recipe", recipe, "--data", text]
    whole = isolated.abridged(*compress, "--output", tmp_path / "whole", folder=tmp_path / "a")
    assert whole.code == 0, whole.stderr
    curve = [m["perplexity"] for m in steps_of(tmp_path / "whole") if m["event"] == "evaluate"]
    assert min(curve) < curve[-1]
    isolated.abridged(*compress, "--output", tmp_path / "parts", folder=tmp_path / "b", stop=Stop(STEP, 4))
    ended = isolated.abridged(*compress, "--output", tmp_path / "parts", "--resume", folder=tmp_path / "c")
    assert ended.code == 0, ended.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("point", ["in the second stage", "in the second stage, before its first checkpoint"])
def test_the_previous_student_as_teacher_survives_an_interruption(tmp_path, text, teacher, uninterrupted, point):
    recipe = make_recipe(stages=2)
    recipe["stages"][1]["teacher"] = "previous"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    compress = ["compress", teacher, "--recipe", tmp_path / "recipe.yaml", "--data", text]
    whole = isolated.abridged(*compress, "--output", tmp_path / "whole", folder=tmp_path / "a")
    assert whole.code == 0, whole.stderr
    isolated.abridged(*compress, "--output", tmp_path / "parts", folder=tmp_path / "b", stop=POINTS[point])
    ended = isolated.abridged(*compress, "--output", tmp_path / "parts", "--resume", folder=tmp_path / "c")
    assert ended.code == 0, ended.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert weights[0] != (uninterrupted / "model.safetensors").read_bytes()  # who learned from the original


@pytest.mark.slow
@pytest.mark.parametrize("delay", range(6))
def test_killed_at_any_time(tmp_path, files, uninterrupted, delay):
    """The real command in a process of its own, killed by the clock until it gets through."""
    import os
    import subprocess
    import sys

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on it; the uninterrupted run has one thread
    student = tmp_path / "student"
    command = [sys.executable, "-m", "abridged", *map(str, files), "--output", str(student)]
    resume: list[str] = []
    for attempt in range(20):
        with (tmp_path / "stderr").open("w") as stderr:
            process = subprocess.Popen([*command, *resume], stderr=stderr, env=environment)
        try:
            process.wait(6 + 0.37 * delay + 2 * attempt)
        except subprocess.TimeoutExpired:
            process.send_signal([signal.SIGKILL, signal.SIGINT][attempt % 2])
            process.wait(60)
        assert process.returncode in (0, -signal.SIGKILL, -signal.SIGINT, 130), (tmp_path / "stderr").read_text()
        if student.exists():  # also where the signal came after that
            break
        resume = ["--resume"]
    assert (student / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()

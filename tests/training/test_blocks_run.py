"""Block by block through the command line: killed and resumed, on disks that fill up."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import isolated
from isolated import Stop

KEPT = "abridged.training.runners.kept:KeptOutputs"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, teacher, text):
    """Those of compress, for a recipe that looks at inputs and trains."""
    layers = {"bits": 2, "quantizer": "dynamic", "levels": "balanced", "granularity": "per_channel", "gamma": "scale"}
    quantize = {"weights": layers, "embeddings": {"bits": 8}, "activations": {"bits": None}, "gptq": True}
    stage = {
        "runner": "blocks",
        "methods": {"quantize": quantize},
        "objectives": {},
        "blocks": {"tokens": 256, "sequences": 16},
        "training": {"steps": 6, "batch_size": 4, "mixed_precision": "no"},
    }
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "blocks", "stages": [stage]}))
    return ["compress", teacher, "--recipe", recipe, "--data", text]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, arguments):
    return isolated.student_of(*arguments, folder=tmp_path_factory.mktemp("uninterrupted"))


def test_it_is_an_ordinary_checkpoint(uninterrupted, text, tmp_path):
    account = json.loads((uninterrupted / "abridged.json").read_text())
    assert account["metrics"].keys() == {"teacher", "student"}
    stored = load_file(uninterrupted / "model.safetensors")
    assert stored["transformer.h.1.mlp.c_fc.weight"].dtype == torch.uint8
    ended = isolated.abridged("evaluate", uninterrupted, "--data", text, folder=tmp_path)
    assert ended.code == 0, ended.stderr


POINTS = {
    "in the first block": Stop("abridged.training.runners.blocks:train_block"),
    "while an output is written": Stop("abridged.core.atomic:settle", 5),
    "as the first block is written": Stop(f"{KEPT}.write"),
    "right after it": Stop(f"{KEPT}.write", 1, "after"),
    "before what nobody reads any more is let go": Stop(f"{KEPT}.forget", 1),
    "in the second block": Stop("abridged.training.runners.blocks:train_block", 2),
    "after the last": Stop(f"{KEPT}.write", 2, "after"),
    "as the parts are put together": Stop("abridged.training.runners.blocks:assemble"),
    "before publishing": Stop("abridged.training.workspace:Workspace.publish"),
}


FAST = ("in the second block", "right after it")


@pytest.mark.parametrize("point", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_killed_and_resumed(tmp_path, arguments, uninterrupted, point):
    student = isolated.killed_and_resumed(arguments, tmp_path, POINTS[point])
    assert (student / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "block"] == [1, 2]
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


#: Nothing is read, and the parts that are written are large.
UNTRAINED = [
    "--set", "stages.0.steps=0", "--set", "stages.0.methods.quantize.gptq=false",
    "--set", "stages.0.methods.quantize.weights.bits=null", "--set", "stages.0.methods.quantize.weights.levels=null",
]  # fmt: skip


@pytest.mark.parametrize(("limit", "changes"), [(30_000, []), (40_000, UNTRAINED)], ids=["outputs", "parts"])
def test_a_disk_that_fills_up_as_inputs_or_parts_are_written(tmp_path, arguments, limit, changes):
    ended = isolated.abridged(
        *arguments, "--output", tmp_path / "student", *changes, folder=tmp_path / "process", file_limit=limit
    )
    assert ended.code == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert "cannot write the training checkpoint (is the disk full?)" in last
    assert last.endswith("free some space and --resume")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "student").exists()
    more = ["--output", tmp_path / "student", *changes, "--resume"]
    assert isolated.abridged(*arguments, *more, folder=tmp_path / "again").code == 0


def test_a_disk_that_fills_up_as_the_result_is_written(tmp_path, arguments):
    """All parts are there by then: nothing is computed again."""
    student = tmp_path / "student"
    more = [*arguments, "--output", student, "--set", "stages.0.blocks.tokens=64"]  # outputs smaller than the result
    ended = isolated.abridged(*more, folder=tmp_path / "process", file_limit=25_000)
    assert ended.code == 1, ended.stderr
    assert f"cannot write {tmp_path}" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not student.exists()
    again = isolated.abridged(*more, "--resume", folder=tmp_path / "again", stop=Stop(f"{KEPT}.write"))
    assert again.code == 0, again.stderr
    assert (student / "model.safetensors").stat().st_size > 25_000


def test_a_teacher_that_is_another_when_a_run_goes_on(tmp_path, arguments, teacher):
    copy = shutil.copytree(teacher, tmp_path / "teacher")
    more = ["compress", copy, *arguments[2:], "--output", tmp_path / "student"]
    first = isolated.abridged(*more, folder=tmp_path / "first", stop=POINTS["right after it"])
    assert first.code == -9, first.stderr
    file = copy / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-4] + bytes(4))
    second = isolated.abridged(*more, "--resume", folder=tmp_path / "second")
    assert second.code == 1
    assert "its teacher differ from the interrupted run's" in second.said[-1]
    file.unlink()
    third = isolated.abridged(*more, "--resume", folder=tmp_path / "third")
    assert third.code == 1
    assert "Traceback" not in third.stderr
    assert "no weights" in third.said[-1]

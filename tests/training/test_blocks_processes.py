"""Blocks shared out over two processes: the student of one, to the bit; killed and resumed."""

import shutil

import pytest
import torch
import yaml
from transformers import GPT2LMHeadModel

import isolated
from isolated import Stop

KEPT = "abridged.training.runners.kept:KeptOutputs"
LAYERS = {"bits": 3, "quantizer": "lsq", "symmetric": False, "initialization": "weighted", "granularity": "per_channel"}
QUANTIZE = {"weights": LAYERS, "embeddings": {**LAYERS, "bits": 4}, "activations": {"bits": None}, "gptq": True}
STAGE = {
    "runner": "blocks",
    "methods": {"quantize": QUANTIZE},
    "objectives": {},
    "blocks": {"tokens": 256, "inputs": "full"},
    "training": {"steps": 0, "mixed_precision": "no"},
}


@pytest.fixture(scope="module")
def five_blocks(tmp_path_factory, teacher):
    """A GPT-2 of five blocks, and its tokenizer: more for the first process than for the second."""
    directory = shutil.copytree(teacher, tmp_path_factory.mktemp("five") / "teacher")
    torch.manual_seed(0)
    config = GPT2LMHeadModel.from_pretrained(directory).config
    config.n_layer = 5
    GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, five_blocks, text):
    recipe = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "blocks", "stages": [STAGE]}))
    return ["compress", str(five_blocks), "--recipe", str(recipe), "--data", str(text)]


@pytest.fixture(scope="module")
def of_one(tmp_path_factory, arguments):
    return isolated.student_of(*arguments, folder=tmp_path_factory.mktemp("one"))


def in_two(*arguments, folder, **more):
    return isolated.call_all(isolated.command_line, *map(str, arguments), folder=folder, **more)


def same(one, other):
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def counting(folder, *arguments):
    """The command line; each process writes which blocks it has worked on."""
    from accelerate import PartialState

    from abridged.training.runners.blocks import Blocks

    work = Blocks.block

    def block(self, number):
        with open(f"{folder}/{PartialState().process_index}", "a") as file:
            file.write(f"{number} ")
        work(self, number)

    Blocks.block = block
    isolated.command_line(*arguments)


def test_two_processes_make_the_student_of_one(tmp_path, arguments, of_one):
    """Each works on every other block."""
    more = [str(tmp_path), *arguments, "--output", str(tmp_path / "student")]
    for ended in isolated.call_all(counting, *more, folder=tmp_path / "processes"):
        assert ended.code == 0, ended.stderr
    assert same(tmp_path / "student", of_one)
    assert [(tmp_path / rank).read_text().split() for rank in "01"] == [["0", "2", "4"], ["1", "3"]]
    assert not (tmp_path / "student.partial").exists()


WRITTEN = Stop(f"{KEPT}.write", 1, "after")
ENDS = {
    "both in their second blocks": [Stop(f"{KEPT}.write", 2)] * 2,
    "the main one": [WRITTEN, None],
    "the other": [None, WRITTEN],
    "the other before anything": [None, Stop(f"{KEPT}.put")],
    "both after all blocks": [Stop("abridged.training.runners.blocks:assemble")] * 2,
}
FAST = ("the other",)


@pytest.mark.parametrize("end", [e if e in FAST else pytest.param(e, marks=pytest.mark.slow) for e in ENDS])
def test_killed_and_resumed(tmp_path, arguments, of_one, end):
    more = [*arguments, "--output", tmp_path / "student"]
    for ended, stop in zip(in_two(*more, folder=tmp_path / "first", stops=ENDS[end]), ENDS[end], strict=True):
        assert ended.code == (1 if stop is None else -9), ended.stderr
        assert stop is not None or "another process of this run was stopped" in ended.said[-1]
    for ended in in_two(*more, "--resume", folder=tmp_path / "second"):
        assert ended.code == 0, ended.stderr
    assert same(tmp_path / "student", of_one)


def test_what_two_have_begun_one_goes_on_with(tmp_path, arguments, of_one):
    more = [*arguments, "--output", tmp_path / "student"]
    in_two(*more, folder=tmp_path / "first", stops=[None, WRITTEN])
    ended = isolated.abridged(*more, "--resume", folder=tmp_path / "second")
    assert ended.code == 0, ended.stderr
    assert same(tmp_path / "student", of_one)


@pytest.mark.parametrize("change", ["blocks.inputs=crossed", "steps=2", "methods.kronecker={factor: 2}"])
def test_blocks_that_wait_for_each_other_are_not_shared_out(tmp_path, arguments, change):
    more = [*arguments, "--output", tmp_path / "student", "--set", f"stages.0.{change}"]
    for ended in in_two(*more, folder=tmp_path / "processes"):
        assert ended.code == 1
        assert "several processes share blocks out only where none waits for another" in ended.said[-1]
    assert not (tmp_path / "student.partial").exists()

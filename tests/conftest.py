"""What all tests share: an environment (processes that they start find this checkout's package), a tiny teacher."""

import os
from pathlib import Path

import pytest
import torch
import yaml

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "src")
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test needs a network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: a GPU's kernels are tried on the CPU


@pytest.fixture
def device():
    """Where tests marked gpu run: on CUDA, or on the CPU where ABRIDGED_GPU_REHEARSAL=1 asks to go through them."""
    if os.environ.get("ABRIDGED_GPU_REHEARSAL") == "1":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; ABRIDGED_GPU_REHEARSAL=1 goes through these tests on the CPU")
    return "cuda"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of some four thousand tokens."""
    import teachers

    return teachers.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, text):
    """A directory with a GPT-2 of width 32 and its tokenizer."""
    import teachers

    return teachers.write_teacher(tmp_path_factory.mktemp("teachers") / "teacher", text)


@pytest.fixture(scope="session")
def bart(tmp_path_factory):
    """A BART of width 32 and its tokenizer, learned on the fables."""
    import teachers
    from abridged.models.load import load_dense, load_tokenizer

    directory = teachers.write_bart(tmp_path_factory.mktemp("bart"), teachers.FABLES.read_text())
    model = load_dense(directory)
    return model, load_tokenizer(directory, model)


@pytest.fixture
def recipe_file(tmp_path):
    """recipe_file(stages=2, steps=3, …) -> a YAML file; see `teachers.make_recipe`."""

    import teachers

    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(teachers.make_recipe(**changes)))
        return path

    return write

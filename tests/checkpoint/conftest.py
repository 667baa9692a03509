"""A checkpoint of a tiny quantised GPT-2."""

import shutil

import pytest

from abridged.checkpoint.save import save_checkpoint
from students import quantized_student


@pytest.fixture(scope="session")
def student():
    return quantized_student()


@pytest.fixture(scope="session")
def saved(student, tmp_path_factory):
    """A checkpoint that no test may change."""
    directory = tmp_path_factory.mktemp("saved") / "student"
    save_checkpoint(student, directory, None, {"recipe": {"name": "test"}, "teacher": "gpt2", "seed": 0})
    return directory


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    """What is saved is compared bit for bit: the kernels sum in another order than the student does in training."""
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)

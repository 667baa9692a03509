"""A tiny teacher and its text, and recipes for it; made once."""

import pytest
import yaml

import teachers


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of some four thousand tokens."""
    return teachers.write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, text):
    """A directory with a GPT-2 of width 32 and its tokenizer."""
    return teachers.write_teacher(tmp_path_factory.mktemp("teachers") / "teacher", text)


@pytest.fixture
def recipe_file(tmp_path):
    """recipe_file(stages=2, steps=3, …) -> a YAML file; see `teachers.make_recipe`."""

    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(teachers.make_recipe(**changes)))
        return path

    return write

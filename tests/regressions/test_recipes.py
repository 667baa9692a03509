"""Recipes that were once loaded as something else, or not refused in one sentence, and those that the fuzzer found."""

import json

import pytest

import recipes
from fuzzing import REGRESSIONS, limited

FILES = sorted((REGRESSIONS / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_recipe_is_what_it_says_or_one_sentence(path, tmp_path):
    case = json.loads(path.read_text())
    with limited():
        recipes.check(case["text"], case["overrides"], tmp_path / "mine.yaml")

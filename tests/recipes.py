"""What holds for every recipe, whoever wrote it: it is loaded as what it says, or refused in one short sentence."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from abridged.core.errors import AbridgedError
from abridged.recipe import Recipe


def check(text: str, overrides: list[str], path: Path) -> None:
    """Fails where a recipe's text and overrides come to anything else."""
    path.write_bytes(text.encode())
    try:
        recipe = Recipe.load(path, overrides)
    except AbridgedError as error:
        sentence = str(error).encode().decode()
    else:
        assert Recipe.load(yaml.safe_load(recipe.describe())) == recipe
        said = recipe.model_dump(mode="json")
        json.dumps(said, ensure_ascii=False).encode()
        for stage in said["stages"]:
            _check_training(stage["training"])
        assert all(math.isfinite(number) for number in _numbers(said))
        recipe.warnings()
        return
    assert "\n" not in sentence
    assert len(sentence) < 1_500


def _check_training(training: dict[str, Any]) -> None:
    """What the loop relies on."""
    assert 0 <= training["seed"] < 2**32
    assert all(0 <= beta < 1 for beta in training["betas"])
    assert training["learning_rate"] > 0
    assert all(rate >= 0 for rate in training["learning_rates"].values())
    assert training["batch_size"] >= 1


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, float) else []

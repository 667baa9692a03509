"""What every method must be before it can be used, and what recipes may still call its settings."""

import inspect
from importlib.resources import files

import pytest
import yaml

from abridged.core.errors import AbridgedError
from abridged.core.lazy import load
from abridged.methods import METHODS, Method
from abridged.methods.base import Attached, check_needs
from abridged.recipe import Recipe

OLD = {"gptq: ": "compensate: ", "per_tensor": "tensor", "per_channel": "row", "per_group": "group"}
WHOLE = {
    "__doc__": "Rounds.",
    "__module__": __name__,
    "name": "round",
    "attached": "nowhere:Rounding",
    "untrained_name": "rounded",
    "untrained": lambda self: self,
}


@pytest.mark.parametrize("lacking", ["__doc__", "name", "attached", "untrained_name", "untrained"])
def test_a_method_without_description_or_baseline_cannot_be_defined(lacking):
    type("Round", (Method,), WHOLE)
    with pytest.raises(TypeError, match=f"Round lacks {'a docstring' if lacking == '__doc__' else lacking}$"):
        type("Round", (Method,), {key: value for key, value in WHOLE.items() if key != lacking})


def test_a_setting_without_description_cannot_be_defined():
    with pytest.raises(TypeError, match="Round lacks a description of bits"):
        type("Round", (Method,), {**WHOLE, "bits": 2, "__annotations__": {"bits": int}})


@pytest.mark.parametrize("name", METHODS)
def test_settings_name_themselves_and_the_class_that_does_the_work(name):
    assert METHODS[name].name == name
    attached = load(METHODS[name].attached)
    assert issubclass(attached, Attached)
    assert list(inspect.signature(attached).parameters) == ["settings", "model", "view", "calibrate"]


NEEDS = [
    ("quantize", {}, "inputs"),
    ("quantize", {"activations": {"bits": None}}, "nothing"),
    ("quantize", {"activations": {"bits": None}, "gptq": True}, "inputs"),
    ("kronecker", {}, "nothing"),
    ("kronecker", {"initialization": "inputs"}, "inputs"),
    ("drop_layers", {}, "nothing"),
    ("prune", {"budget": {"parameters": 0.5}}, "gradients"),
    ("prune", {"budget": {"parameters": 0.5}, "masks": "magnitude"}, "nothing"),
    ("prune", {"budget": {"parameters": 0.5}, "masks": "magnitude", "reconstruct": True}, "inputs"),
    ("lora", {}, "gradients"),
]


@pytest.mark.parametrize(("name", "settings", "needs"), NEEDS, ids=lambda value: str(value)[:40])
def test_what_a_method_needs_is_refused_where_a_runner_has_less(name, settings, needs):
    method = METHODS[name](**settings)
    assert method.needs == needs
    order = ["nothing", "inputs", "gradients"]
    for given in order:
        if order.index(given) >= order.index(needs):
            check_needs({name: method}, given, "such a runner")
        else:
            with pytest.raises(AbridgedError, match=f"^methods.{name} needs .*, and such a runner has "):
                check_needs({name: method}, given, "such a runner")


@pytest.mark.parametrize("path", sorted(files("abridged.recipes").iterdir()), ids=lambda path: path.name)
def test_shipped_recipes_mean_the_same_by_the_names_of_before(path):
    text = path.read_text() if path.name.endswith(".yaml") else ""
    before = text
    for new, old in OLD.items():
        before = before.replace(new, old)
    if before != text:
        assert Recipe.load(yaml.safe_load(before)) == Recipe.load(yaml.safe_load(text))


def test_of_two_names_of_one_setting_the_last_counts():
    recipe = Recipe.load("best-bert-2-2-8", ["stages.0.methods.quantize.compensate=false"])
    assert recipe.stages[0].methods["quantize"].gptq is False
    recipe = Recipe.load("best-2-2-8", ["compensate=true", "stages.0.methods.quantize.weights.granularity=tensor"])
    quantize = recipe.stages[0].methods["quantize"]
    assert (quantize.gptq, quantize.weights.granularity) == (True, "per_tensor")

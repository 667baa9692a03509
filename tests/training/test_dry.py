"""What is foreseen of a model without its weights: its size as the file then has it, its faults, its refusals."""

import json

import pytest

import isolated
import tiny
from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.recipe import Recipe
from abridged.training.dry import foresee, stored_size


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("gpt2", "best-2-2-8"),
        ("llama", "best-2-2-8"),
        ("gpt2", "best-kngpt2-2-2-8"),
        ("bert", "best-bert-1-1-4"),
        ("bart", "quantbart-2-2-8"),
        ("t5", "quantbart-8-8-8"),
    ],
)
def test_the_size_is_that_of_the_file(name, recipe, tmp_path):
    kind, config = tiny.TINY[name]()
    loaded = Recipe.load(recipe)
    found = stored_size(kind, config, loaded)
    model = tiny.build(name)
    parameters = sum(p.numel() for p in model.parameters())
    for stage in loaded.stages:
        for method in stage.methods.values():
            view = families.view(model)
            method.build(model, view, lambda model, tokens=None: model(**tiny.inputs(model))).finish()
    save_checkpoint(model, tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": name, "seed": 0})
    assert found["file_bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert found["exact"]
    assert found["ratio"] == pytest.approx(4 * parameters / found["file_bytes"])


def test_layers_that_are_dropped_are_not_counted(tmp_path):
    kind, config = tiny.TINY["gpt2"]()
    recipe = Recipe.load({**RECIPE, "stages": [{"methods": {"drop_layers": {"keep": [0]}}, **STAGE}]})
    model = tiny.build("gpt2")
    recipe.stages[0].methods["drop_layers"].build(model, families.view(model), lambda model, tokens=None: None)
    save_checkpoint(model, tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": "gpt2", "seed": 0})
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert stored_size(kind, config, recipe)["file_bytes"] == size


STAGE = {"objectives": {"labels": {}}, "training": {"steps": 1}}
RECIPE = {"name": "test"}


def test_what_pruning_leaves_is_its_budget():
    kind, config = tiny.TINY["gpt2"]()
    prune = {"prune": {"budget": {"parameters": 0.5}}}
    whole = stored_size(kind, config, Recipe.load({**RECIPE, "stages": [{"methods": {"quantize": {}}, **STAGE}]}))
    half = stored_size(
        kind,
        config,
        Recipe.load({**RECIPE, "stages": [{"methods": prune, **STAGE}, {"methods": {"quantize": {}}, **STAGE}]}),
    )
    assert not half["exact"]
    assert half["file_bytes"] == round(whole["file_bytes"] / 2)


def test_a_model_of_which_there_is_only_the_config(tmp_path):
    kind, config = tiny.TINY["gemma2"]()
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path)
    found = foresee(tmp_path, Recipe.load("best-2-2-8"))
    assert found["model"]["class"] == "Gemma2ForCausalLM"
    assert found["model"]["logits"] == {"scale": 1.0, "input_scale": 1.0, "cap": 2.0}
    assert found["model"]["matrices"]["ffn"] == {"matrices": 6, "parameters": 6 * 64 * 96}
    assert {"kind": "attention", "units": 2, "parts": 2} in found["model"]["parts"]
    assert found["methods"] == {"quantize": None}
    assert found["recipe"]["name"] == "best-2-2-8"


def test_a_recipe_that_does_not_fit_is_refused_in_one_sentence():
    kind, config = tiny.TINY["t5"]()
    with pytest.raises(AbridgedError, match="group_size 128 does not divide the 64 columns"):
        stored_size(kind, config, Recipe.load("best-bart-1-1-8"))


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_command(form, tmp_path):
    kind, config = tiny.TINY["gpt2"]()
    config.architectures = [kind.__name__]
    config.save_pretrained(tmp_path / "model")
    ended = isolated.abridged(
        "inspect", tmp_path / "model", "--dry", "--recipe", "best-2-2-8", *form, folder=tmp_path / "process"
    )
    assert ended.code == 0, ended.stderr
    if form:
        assert json.loads(ended.stdout)["methods"] == {"quantize": None}
    else:
        assert "GPT2LMHeadModel" in ended.stdout
        assert "best-2-2-8" in ended.stdout
        assert "times smaller" in ended.stdout

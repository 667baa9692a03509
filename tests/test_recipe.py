"""Recipes: every shipped one is right, and a wrong one is told what is wrong and what was probably meant."""

import subprocess
import sys
import textwrap

import pytest
import yaml

from abridged.errors import AbridgedError
from abridged.methods.base import Method
from abridged.objectives.settings import Objective
from abridged.recipe import Recipe, all_keys
from abridged.settings_text import parse_yaml


@pytest.mark.parametrize("name", Recipe.names())
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.paper
    for stage in recipe.stages:
        assert all(isinstance(method, Method) for method in stage.methods.values())
        assert all(isinstance(objective, Objective) for objective in stage.objectives.values())
    assert Recipe.load(yaml.safe_load(recipe.describe())) == recipe
    assert Recipe.load(recipe) == recipe


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantgpt_recipes_follow_the_paper(bits):
    (stage,) = Recipe.load(f"quantgpt-{bits}-{bits}-8").stages
    quantize = stage.methods["quantize"]
    assert (quantize.weights.bits, quantize.embeddings.bits, quantize.activations.bits) == (bits, bits, 8)
    assert (quantize.weights.quantizer, quantize.weights.granularity) == ("dynamic", "tensor")
    assert (quantize.embeddings.quantizer, quantize.embeddings.granularity) == ("dynamic", "row")
    assert quantize.activations.attention
    assert stage.objectives["contrastive"].negatives == "teacher"


@pytest.mark.parametrize("quantizer", ["lsq", "pact", "laq", "twn", "minmax"])
def test_baselines_differ_from_quantgpt_in_the_quantizer_not_in_the_optimisation(quantizer):
    (ours,), (theirs,) = Recipe.load("quantgpt-2-2-8").stages, Recipe.load(f"{quantizer}-2-2-8").stages
    rates = {"learning_rates": {**ours.training.learning_rates, "scale": theirs.training.learning_rates["scale"]}}
    assert theirs.training == ours.training.model_copy(update=rates)  # a scale learns at a rate of its own size
    assert theirs.methods["quantize"].activations == ours.methods["quantize"].activations
    assert theirs.methods["quantize"].weights.quantizer == quantizer


def test_overrides_reach_training_by_short_name_and_every_stage_by_star():
    overrides = ["stages.*.steps=7", "stages.0.training.batch_size=2", "stages.1.learning_rate=3e-4"]
    two = parse_yaml(Recipe.text("best-1-1-8"), "best-1-1-8")
    two["stages"] *= 2
    recipe = Recipe.load(two, overrides)
    assert [stage.training.steps for stage in recipe.stages] == [7, 7]
    assert recipe.stages[0].training.batch_size == 2
    assert recipe.stages[1].training.learning_rate == pytest.approx(3e-4)
    inner = Recipe.load("best-bert-1-1-8", ["stages.*.augmentation.variants=7", "stages.0.learning_rates.scale=1e-2"])
    assert inner.stages[0].training.augmentation.variants == 7
    assert inner.stages[0].training.learning_rates["scale"] == pytest.approx(1e-2)


def test_an_override_does_not_leak_through_a_yaml_alias():
    overrides = [f"stages.0.methods.quantize.weights.{change}" for change in ("bits=8", "levels=null")]
    quantize = Recipe.load("best-2-2-8", overrides).stages[0].methods["quantize"]
    assert (quantize.weights.bits, quantize.embeddings.bits) == (8, 2)


def test_an_override_reads_words_numbers_and_null_as_yaml():
    overrides = ["stages.0.compile=no", "stages.0.gradient_clip=null", "stages.0.context=64"]
    training = Recipe.load("quantgpt-2-2-8", overrides).stages[0].training
    assert (training.compile, training.gradient_clip, training.context) == ("no", None, 64)


def test_null_takes_an_objective_out():
    (stage,) = Recipe.load("quantgpt-2-2-8", ["stages.0.objectives.contrastive=null"]).stages
    assert list(stage.objectives) == ["logits"]


def test_a_recipe_object_takes_overrides_too_and_stays_as_it_was():
    recipe = Recipe.load("quantgpt-2-2-8")
    assert Recipe.load(recipe, ["stages.0.steps=3"]).stages[0].training.steps == 3
    assert recipe.stages[0].training.steps != 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.0.stepz=5", "stages.0.stepz, did you mean 'training.steps'"),
        ("stages.0.training.learning_rat=1", "stages.0.training.learning_rat, did you mean 'learning_rate'"),
        ("stages.0.methods.quantise.weights.bits=2", "unknown method 'quantise', did you mean 'quantize'"),
        ("stages.0.methods.quantize.weight.bits=2", "stages.0.methods.quantize.weight, did you mean 'weights'"),
        ("stages.0.methods.quantize.weights.bitz=2", "stages.0.methods.quantize.weights.bitz, did you mean 'bits'"),
        ("stages.0.objectives.contrastiv.weight=1", "unknown objective 'contrastiv', did you mean 'contrastive'"),
        ("naem=x", "unknown key naem, did you mean 'name'"),
        ("stages.0.zzzzzz=1", "known here: name, methods, objectives, teacher, training"),
        ("stages.0.methods.quantize.weights.bits=3", "quantize.weights.bits: input should be 1, 2, 4 or 8"),
        ("stages.0.steps=-1", "stages.0.training.steps: input should be greater than or equal to 0"),
        ("stages.0.steps=many", "stages.0.training.steps: input should be a valid integer"),
        ("stages.3.steps=1", "there is no item '3' (there are 0, *)"),
        ("stages.first.steps=1", "there is no item 'first'"),
        ("name.x=1", "nothing can be set at 'x'"),
        ("stages.0.steps", "expected key=value"),
        ("stages.0.steps=[1", "not valid YAML"),
        ("stages=[]", "stages: list should have at least 1 item"),
        ("stages=none", "expected a list of stages"),
        ("stages.0.objectives={}", "needs at least one objective"),
        ("stages.0.methods=quantize", "expected methods by name"),
        ("stages.0.training=fast", "stages.0.training: expected keys and values"),
    ],
)
def test_wrong_overrides_say_where_and_what_was_meant(override, expected):
    with pytest.raises(AbridgedError) as error:
        Recipe.load("quantgpt-2-2-8", [override])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_recipes_name_the_nearest():
    with pytest.raises(AbridgedError, match="unknown recipe 'quantgtp-2-2-8', did you mean 'quantgpt-2-2-8'"):
        Recipe.load("quantgtp-2-2-8")
    with pytest.raises(AbridgedError, match=r"mine\.yaml does not exist"):
        Recipe.load("mine.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "expected keys and values at the top"),
        ("", "expected keys and values at the top"),
        ("name: x\n", "stages: field required"),
        ("name: x\nname: y\n", "line 2: not valid YAML: key 'name' is given twice"),
        ("name: [x\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML: could not determine a constructor"),
        ("name: x\nstages: &a\n  - *a\n", "an alias refers to what it stands in"),
        ("name: \x00\n", "not valid YAML"),
    ],
)
def test_malformed_files_end_in_one_sentence(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(AbridgedError) as error:
        Recipe.load(path)
    assert expected in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_files_that_are_not_text_end_in_one_sentence(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(AbridgedError, match=r"mine\.yaml: not UTF-8 text"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("name", "overrides", "warned"),
    [
        ("rtn-2-2-8", [], True),
        ("quantgpt-2-2-8", [], False),
        ("quantgpt-2-2-8", ["stages.0.steps=0"], True),
        ("quantgpt-8-8-8", ["stages.0.steps=0"], False),
        ("quantgpt-2-2-8", ["stages.0.steps=0", "stages.0.epochs=1"], False),
    ],
)
def test_few_bits_without_training_are_warned_of(name, overrides, warned):
    assert bool(Recipe.load(name, overrides).warnings()) == warned


def test_keys_lists_every_setting_with_its_default_and_a_description():
    by_path = {key.path: key for key in all_keys()}
    assert by_path["stages.N.training.steps"].default == "1000"
    assert "1 | 2 | 4 | 8 | null" in by_path["stages.N.methods.quantize.weights.bits"].type
    assert by_path["stages.N.objectives.contrastive.negatives"].type == "teacher | student | vocabulary"
    assert [key.path for key in by_path.values() if not key.description] == []


def test_recipes_are_read_and_checked_without_torch():
    code = """
        import sys
        from abridged.recipe import Recipe, all_keys
        assert [Recipe.load(name) for name in Recipe.names()] and list(all_keys())
        heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_the_first_stage_has_no_previous_teacher():
    stage = {"methods": {}, "objectives": {"logits": {}}, "teacher": "previous"}
    with pytest.raises(AbridgedError, match="the first stage has none before it"):
        Recipe.load({"name": "x", "stages": [stage]})

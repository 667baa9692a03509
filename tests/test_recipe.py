"""Recipes: every shipped one is right, and a wrong one is told what is wrong and what was probably meant."""

import subprocess
import sys
import textwrap

import pytest
import yaml

from abridged.core.errors import AbridgedError
from abridged.core.settings_text import parse_yaml
from abridged.core.shipped import headings
from abridged.methods.base import Method
from abridged.objectives.settings import Objective
from abridged.recipe import Recipe, all_keys


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
    assert (quantize.weights.quantizer, quantize.weights.granularity) == ("dynamic", "per_tensor")
    assert (quantize.embeddings.quantizer, quantize.embeddings.granularity) == ("dynamic", "per_channel")
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


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["stages.*.steps=40"], 40, None),
        (["stages.0.training.steps=40"], 40, None),
        (["stages.0.steps=40", "stages.0.epochs=2"], 40, 2.0),
    ],
)
def test_steps_that_are_asked_for_are_not_put_aside_by_the_epochs_of_a_recipe(overrides, steps, epochs):
    training = Recipe.load("best-bert-2-2-8", overrides).stages[0].training
    assert (training.steps, training.epochs) == (steps, epochs)


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
        ("stages.0.zzzzzz=1", "known here: name, methods, objectives, teacher, runner, blocks, training"),
        ("stages.0.methods.quantize.weights.bits=7", "quantize.weights.bits: input should be 1, 2, 3, 4, 5, 6 or 8"),
        ("stages.0.steps=-1", "stages.0.training.steps: input should be greater than or equal to 0"),
        ("stages.0.steps=many", "stages.0.training.steps: input should be a valid integer"),
        ("stages.0.batch_size=true", "stages.0.training.batch_size: input should be a number, not true"),
        ("stages.0.learning_rates={scale: true}", "training.learning_rates: input should be a number"),
        ("stages.0.betas=[true, 0.9]", "training.betas: input should be a number"),
        ("stages.0.learning_rates={scale: -1e-3}", "learning_rates.scale: input should be greater than or equal to 0"),
        ("stages.0.learning_rate=.inf", "training.learning_rate: input should be a finite number"),
        ("stages.0.learning_rates={scale: .nan}", "learning_rates.scale: input should be a finite number"),
        ("stages.0.betas=[0.9, 1]", "training.betas.1: input should be less than 1"),
        ("stages.0.betas=[-0.1, 0.9]", "training.betas.0: input should be greater than or equal to 0"),
        ("stages.0.seed=9223372036854775809", "more than 63 bits"),
        ("stages.0.seed=4294967296", "training.seed: input should be less than or equal to 4294967295"),
        (f"stages.0.steps={'x' * 500}", f"(given: '{'x' * 79}…)"),
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


def grown(first, more):
    """YAML that has nine times as many values a line, once aliases are spelled out."""
    lines = [more.format(", ".join([f"*a{i}"] * 9)) for i in range(9)]
    return "".join(f"a{i}: &a{i} {line}\n" for i, line in enumerate([first, *lines]))


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
        (grown("[x]", "[{}]"), "more than 20,000 values, aliases spelled out"),
        (grown("{x: y}", "{{<<: [{}]}}"), "more than 20,000 values, aliases spelled out"),
        ("name: " + "[" * 20_000, "nested too deeply"),
        (f"name: {'9' * 5000}\n", "a value is not what it is marked as"),
        (f"name: 0x{'f' * 5000}\n", "a number of more than 63 bits"),
        ('name: "\\ud83d"\n', "half a character"),
        ("name: 2020-99-99\n", "a value is not what it is marked as"),
        ("name: 2020-01-01\n", "a date"),
        ("? [a, b]\n: c\n", "line 1: not valid YAML: a key is a list or keys"),
        ("name: !!int x\n", "a value is not what it is marked as"),
        ("name: " + "x" * 300_000, "longer than settings can be"),
        ("name: x\nstages:\n- {methods: {1: {}}, objectives: {}, training: {}}\n", "unknown method '1'"),
        ("1: x\n", "unknown key 1"),
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


@pytest.mark.parametrize(
    ("name", "overrides", "warned"),
    [
        ("best-2-2-8", ["stages.0.steps=149"], True),
        ("best-2-2-8", ["stages.0.steps=150"], False),
        ("best-2-2-8", ["stages.0.steps=0"], False),
        ("best-2-2-8", ["stages.0.steps=40", "stages.0.learning_rate=1e-4"], False),
        ("litevl", ["stages.0.steps=40"], False),  # counts epochs
    ],
)
def test_a_rate_meant_for_ten_times_the_steps_is_warned_of(name, overrides, warned):
    found = Recipe.load(name, overrides).warnings(Recipe.load(name))
    assert any("learning rate is meant for" in sentence for sentence in found) == warned


def test_keys_lists_every_setting_with_its_default_and_a_description():
    by_path = {key.path: key for key in all_keys()}
    assert by_path["stages.N.training.steps"].default == "1000"
    assert "1 | 2 | 3 | 4 | 5 | 6 | 8 | null" in by_path["stages.N.methods.quantize.weights.bits"].type
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


def test_headings_are_what_the_recipes_say_whole():
    whole = map(Recipe.load, Recipe.names())
    assert headings() == [{"name": r.name, "description": r.description, "paper": r.paper} for r in whole]

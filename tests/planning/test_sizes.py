"""The bytes that a plan counts are those of the file that is then written."""

import json
import random
from functools import cache

import pytest
import torch

import tiny
from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.data.batch import Batch
from abridged.planning.forms import assigned
from abridged.planning.plan import Planner, make_recipe
from abridged.planning.pruned import pruned
from abridged.recipe import Recipe

TRAINING = {"objectives": {"logits": {}}, "training": {"steps": 0}}
SETTINGS = {"bits": 2, "granularity": "per_channel", "scale_dtype": "float16", "gamma": "scale"}


def recipe(**quantize):
    settings = {"weights": SETTINGS, "embeddings": SETTINGS, "activations": {"quantizer": "dynamic"}, **quantize}
    return Recipe.load({"name": "frame", "stages": [{"methods": {"quantize": settings}, **TRAINING}]})


@cache
def _planner(name, quantize):
    kind, config = tiny.TINY[name]()
    return Planner(kind, config, families.view_of_config(kind, config), recipe(**json.loads(quantize)))


def planner(name, **quantize):
    return _planner(name, json.dumps(quantize))


def written(name, changed, folder):
    model = tiny.build(name)
    for method in (method for stage in changed.stages for method in stage.methods.values()):
        method.build(model, families.view(model), lambda model, tokens=None: model(**tiny.inputs(model))).finish()
    save_checkpoint(model, folder, None, {"recipe": {"name": "test"}, "teacher": name, "seed": 0})
    return (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "quantize"),
    [
        ("gpt2", {}),
        ("gpt2", {"unquantized": "float16", "positions": True}),
        ("llama", {"activations": {"bits": None}}),
        ("bart", {}),
        ("bert", {"activations": {"bits": 8, "attention": True}}),
    ],
)
def test_the_bytes_are_those_of_the_file(name, quantize, seed, tmp_path):
    made, draw = planner(name, **quantize), random.Random(seed)
    assignment = {matrix: draw.choice(forms) for matrix, forms in made.forms.items()}
    assert len(set(assignment.values())) > 2
    assert len({form.factor for form in assignment.values()}) > 1
    size = written(name, assigned(made.recipe, assignment), tmp_path / "small")
    assert made.sizes.file_bytes(assignment) == size


def test_a_matrix_that_somebody_has_decided_on_is_left_alone():
    made = planner("gpt2", exceptions={"embedding": {"bits": 8}, "*.h.0.mlp.c_fc": {"bits": None}})
    names = {matrix.name for matrix in made.matrices}
    assert names.isdisjoint({"transformer.wte", "transformer.h.0.mlp.c_fc"})
    assert "transformer.h.1.mlp.c_fc" in names
    changed = assigned(made.recipe, {name: made.forms[name][0] for name in names})
    assert changed.stages[0].methods["quantize"].exceptions["embedding"].bits == 8


def test_groups_that_do_not_divide_a_row_are_not_offered():
    made = planner("gpt2")
    for matrix in made.matrices:
        sizes = {form.weights.group_size for form in made.forms[matrix.name]} - {None}
        assert all(matrix.columns % size == 0 for size in sizes)
        assert sizes


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_bytes_of_a_pruned_model_are_those_that_its_recipe_makes(name, tmp_path):
    """A plan finds what is left on a copy of the model; the recipe that it writes must find the same."""
    kind, config = tiny.TINY[name]()
    dense = tiny.build(name)
    read = Batch.of(*(tiny.inputs(dense)["input_ids"],) * 2, torch.arange(2))
    small = pruned(dense, 0.85, [read])
    made = Planner(kind, config, families.view(small), recipe(), small, 0.85, 0.1)
    assignment = {matrix: random.Random(0).choice(forms) for matrix, forms in made.forms.items()}
    made.take({matrix: [1.0] * len(forms) for matrix, forms in made.forms.items()}, "measured", 1)
    point = made.assess(assignment)
    assert (point.share, point.loss) == (0.85, pytest.approx(0.1 + len(assignment)))
    changed = make_recipe(made, point.file_bytes, point, [point])
    assert [*changed.stages[0].methods] == ["prune"]
    assert written(name, changed, tmp_path / "small") == point.file_bytes
    whole = planner(name)
    thicker = {
        matrix: form if form in whole.forms[matrix] else whole.forms[matrix][0] for matrix, form in assignment.items()
    }
    assert point.file_bytes < whole.sizes.file_bytes(thicker)

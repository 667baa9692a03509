"""Plans: for the size that was asked, the best there is, written down and read again."""

import itertools
import random

import pytest

import tiny
from abridged import families
from abridged.core.errors import AbridgedError
from abridged.planning.forms import assignment_of
from abridged.planning.plan import Planner, check_compresses, front_of, groups, made_before, make_recipe
from abridged.planning.pruned import with_pruning
from abridged.planning.words import size_in_bytes
from abridged.recipe import Recipe

TRAINING = {"objectives": {"logits": {}}, "training": {"steps": 0}}
SETTINGS = {"bits": 2, "granularity": "per_channel", "scale_dtype": "float16", "gamma": "scale"}


def frame(**more):
    methods = {"quantize": {"weights": SETTINGS, "embeddings": SETTINGS}, **more}
    return {"name": "frame", "stages": [{"methods": methods, **TRAINING}]}


@pytest.fixture(scope="module")
def planner():
    """Of a tiny GPT-2, with costs made up so that some matrices are dear and more bits are always better."""
    kind, config = tiny.TINY["gpt2"]()
    made = Planner(kind, config, families.view_of_config(kind, config), Recipe.load(frame()))
    draw = random.Random(0)
    weights = {matrix.name: draw.uniform(0.01, 10) for matrix in made.matrices}
    costs = {
        name: [weights[name] * 4**-form.bits * (1 if form.weights.group_size is None else 0.8) for form in forms]
        for name, forms in made.forms.items()
    }
    made.take(costs, "measured", 100)
    return made


def test_a_plan_fits_to_the_byte(planner):
    for size in range(planner.smallest.file_bytes, planner.largest.file_bytes + 2000, 997):
        point = planner.at(size)
        assert point.file_bytes <= size
        assert point.file_bytes == planner.sizes.file_bytes(point.assignment)


def test_the_smallest_and_the_largest_can_be_had(planner):
    smallest = planner.smallest.file_bytes
    assert smallest - 64 <= planner.at(smallest).file_bytes <= smallest  # but for digits of the header's numbers
    assert planner.at(10 * planner.largest.file_bytes).loss == pytest.approx(
        sum(min(costs) for costs in planner.costs.values())
    )


def test_no_single_change_that_fits_would_be_better(planner):
    size = (planner.smallest.file_bytes + planner.largest.file_bytes) // 2
    point = planner.at(size)
    for name, forms in planner.forms.items():
        for form in forms:
            other = planner.assess({**point.assignment, name: form})
            assert other.file_bytes > size or other.loss >= point.loss - 1e-12


def test_the_front_has_at_least_ten_sizes_and_falls(planner):
    asked = planner.smallest.file_bytes + 4321
    front = front_of([planner], more=[asked])
    assert len(front) >= 10
    assert all(a.file_bytes < b.file_bytes and a.loss > b.loss for a, b in itertools.pairwise(front))
    assert planner.at(asked) in front


def test_a_dear_matrix_gets_no_fewer_bits_than_a_cheap_one_of_its_shape(planner):
    point = planner.at((planner.smallest.file_bytes + planner.largest.file_bytes) // 2)
    same = [m for m in planner.matrices if m.name.endswith("mlp.c_fc")]
    dear, cheap = sorted(same, key=lambda m: -max(planner.costs[m.name]))[:2]
    assert point.assignment[dear.name].bits >= point.assignment[cheap.name].bits


def test_the_recipe_is_written_and_read_again(planner, tmp_path):
    point = planner.at(planner.smallest.file_bytes + 5000)
    thin = {name: next(f for f in planner.forms[name] if not f.whole) for name in [*point.assignment][2:5:2]}
    point = planner.assess({**point.assignment, **thin})
    recipe = make_recipe(planner, point.file_bytes + 3, point, front_of([planner]))
    (tmp_path / "plan.yaml").write_text(recipe.compact())
    read = Recipe.load(tmp_path / "plan.yaml")
    assert read == recipe
    assert assignment_of(read) == dict(point.assignment)
    assert [*read.stages[0].methods] == ["kronecker", "quantize"]
    assert read.expected.file_bytes == point.file_bytes
    assert read.expected.loss == point.loss
    assert len(read.expected.front) >= 10
    assert recipe.compact().count("scale_dtype") < 2 * len(set(point.assignment.values())) + 3  # once, then aliases


def test_a_plan_that_was_made_before_is_taken_for_the_same_size_and_recipe_alone(planner):
    point = planner.smallest
    assert not all(form.whole for form in point.assignment.values())
    made = make_recipe(planner, 30_000, point, front_of([planner]))
    data = made.model_dump(mode="json")
    assert made_before(data, planner.recipe, 30_000) == made
    assert made_before(data, planner.recipe, 30_001) is None
    assert made_before(None, planner.recipe, 30_000) is None
    other = Recipe.load(planner.recipe, ["stages.0.objectives.logits.weight=2"])
    assert made_before(data, other, 30_000) is None
    assert made_before(other.model_dump(mode="json"), other, 30_000) is None


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_a_plan_that_was_made_before_heeded_what_else_is_asked(planner, share):
    asked = {"speed": "2x", "prune": True}
    made = make_recipe(planner, 30_000, planner.smallest, front_of([planner]), asked)
    made = made if share == 1 else with_pruning(made, share)
    data = made.model_dump(mode="json")
    assert made_before(data, planner.recipe, 30_000, asked) == made
    assert made_before(data, planner.recipe, 30_000) is None
    assert made_before(data, planner.recipe, 30_000, {**asked, "speed": "3x"}) is None


def test_the_groups_are_all_matrices_once(planner):
    point = planner.at(planner.smallest.file_bytes + 5000)
    names = [name for own in groups(planner.matrices, point.assignment).values() for name in own]
    assert sorted(names) == sorted(planner.forms)


def test_a_size_that_cannot_be_had_says_what_the_smallest_is(planner):
    smallest = planner.smallest.file_bytes
    planner.check(smallest)
    for ask in (planner.at, planner.check):
        with pytest.raises(AbridgedError, match=rf"cannot be had: the smallest .* is .* \({smallest:,} bytes\)"):
            ask(smallest - 1)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("much", "--size cannot be read: 'much' (such as 40MB)"),
        ("40ells", "cannot be read"),
        ("-3MB", "cannot be read"),
        (0, "must be above 0"),
        ("40", "--size needs a unit: 40MB, or 40B for bytes"),
        ("1e99GB", "--size 1e99GB is more than any model takes"),
        ("1e999", "is more than any model takes"),
        ("2MB", "2.00 MB needs no compression: the model takes 1.00 MB as it is"),
    ],
)
def test_sizes_that_are_none_or_need_no_compression(size, message):
    with pytest.raises(AbridgedError) as fault:
        check_compresses(size_in_bytes(size), 2**20)
    assert message in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (frame(drop_layers={"keep": [0]}), "does nothing else, and frame has the methods drop_layers"),
        ({"name": "plain", "stages": [{"methods": {}, **TRAINING}]}, "and plain quantises nothing"),
        (
            frame(quantize={"weights": {"bits": None}, "embeddings": {"bits": None}}),
            "recipe frame leaves nothing to plan",
        ),
    ],
)
def test_recipes_that_cannot_be_planned(recipe, message):
    kind, config = tiny.TINY["gpt2"]()
    with pytest.raises(AbridgedError, match=message):
        Planner(kind, config, families.view_of_config(kind, config), Recipe.load(recipe))

"""What a plan takes on this machine: counted as packed modules have it, measured through the kernels, and kept to."""

import json
import math
import random

import pytest

import tiny
from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.cache import cache_folder
from abridged.core.errors import AbridgedError
from abridged.planning import machine as rooms
from abridged.planning.limits import Limits
from abridged.planning.machine import Machine, built, measure
from abridged.planning.plan import Planner, front_of
from abridged.recipe import Recipe
from abridged.runtime.modules import PackedModule
from abridged.storage.format import ActivationSpec, LinearSpec
from abridged.storage.matrix import Storage

SETTINGS = {"bits": 2, "granularity": "per_channel", "scale_dtype": "float16", "gamma": "scale"}
QUANTIZE = {"weights": SETTINGS, "embeddings": SETTINGS, "activations": {"quantizer": "dynamic"}}
FRAME = {
    "name": "frame",
    "stages": [
        {"methods": {"quantize": QUANTIZE}, "objectives": {"logits": {}}, "training": {"steps": 0}},
    ],
}


@pytest.fixture(scope="module")
def made():
    """A planner of a tiny GPT-2, with costs made up, and its forms cut down to some that are drawn."""
    kind, config = tiny.TINY["gpt2"]()
    planner, draw = Planner(kind, config, families.view_of_config(kind, config), Recipe.load(FRAME)), random.Random(0)
    planner.forms = {name: [own[0], *draw.sample(own[1:], 6)] for name, own in planner.forms.items()}
    costs = {name: [draw.uniform(1, 3) * 4**-form.bits for form in own] for name, own in planner.forms.items()}
    return planner, costs


@pytest.fixture
def planner(made):
    """The same, without limits."""
    planner, costs = made
    planner.take(costs, "measured", 100)
    return planner


@pytest.fixture
def machine(planner):
    """Made up, with 1 ms and 1,000 bytes beside the matrices."""
    draw = random.Random(1)
    seconds = {name: {form: draw.uniform(1e-5, 1e-4) for form in own} for name, own in planner.forms.items()}
    held = {name: {form: planner.sizes.of(name, form) for form in own} for name, own in planner.forms.items()}
    return Machine(seconds, held, 1e-3, 1000, 2e-2)


def middle(planner):
    return (planner.smallest.file_bytes + planner.largest.file_bytes) // 2


def test_a_plan_keeps_to_the_speed_and_costs_more_for_it(planner, machine):
    free = planner.at(middle(planner))
    planner.limit(Limits(speed=1.02 * machine.tokens_per_second(free.assignment)), machine)
    kept = planner.at(middle(planner))
    assert kept.file_bytes <= middle(planner)
    assert kept.tokens_per_second >= 1.02 * machine.tokens_per_second(free.assignment)
    assert kept.loss > free.loss


def test_a_plan_keeps_to_the_memory(planner, machine):
    free = planner.at(middle(planner))
    limit = int(0.8 * machine.memory(free.assignment))
    planner.limit(Limits(memory=limit), machine)
    assert 0.9 * limit < planner.at(middle(planner)).memory <= limit


def test_limits_that_are_far_off_change_nothing(planner, machine):
    free = planner.at(middle(planner))
    planner.limit(Limits(memory=1 << 40, speed=1e-3), machine)
    assert planner.at(middle(planner)).assignment == free.assignment


def test_a_front_has_sizes_within_the_limits_alone(planner, machine):
    fast = 1.05 * machine.tokens_per_second(planner.smallest.assignment)
    planner.limit(Limits(speed=fast), machine)
    front = front_of([planner])
    assert front
    assert all(point.tokens_per_second >= fast for point in front)
    assert front[0].file_bytes > planner.smallest.file_bytes


@pytest.mark.parametrize("limits", [Limits(speed=1e6), Limits(times=1e6), Limits(memory=1 << 40, speed=1e6)])
def test_a_speed_that_cannot_be_had_says_what_the_fastest_is(planner, machine, limits):
    planner.limit(limits, machine)
    with pytest.raises(AbridgedError, match=r"no plan of .* tokens/s.* the fastest writes ([\d,]+)$") as fault:
        planner.at(middle(planner))
    told = int(str(fault.value).rpartition(" ")[2].replace(",", ""))
    planner.limit(Limits(speed=told - 1), machine)
    assert planner.at(middle(planner)).tokens_per_second >= told - 1


def test_a_memory_that_cannot_be_had_says_what_the_least_is(planner, machine):
    planner.limit(Limits(memory=2000, speed=1.0), machine)
    with pytest.raises(AbridgedError, match=r"no plan of .* takes 0.00 MB of memory .* the least is 0.0\d MB$"):
        planner.at(middle(planner))


@pytest.mark.parametrize(
    ("speed", "memory", "limits"),
    [
        ("40", None, Limits(speed=40.0)),
        (12.5, "1MB", Limits(memory=2**20, speed=12.5)),
        ("2x", 100, Limits(memory=100, times=2.0)),
        ("1.5 times", None, Limits(times=1.5)),
        (None, None, Limits()),
    ],
)
def test_limits_as_people_write_them(speed, memory, limits):
    assert Limits.of(speed, memory) == limits
    assert limits.given == (limits != Limits())


@pytest.mark.parametrize(
    ("speed", "memory", "message"),
    [
        ("fast", None, "--speed cannot be read: 'fast' (such as 40, of tokens a second, or 2x)"),
        ("0", None, "--speed cannot be read"),
        ("-2x", None, "--speed cannot be read"),
        (None, "40", "--memory needs a unit: 40MB, or 40B for bytes"),
    ],
)
def test_limits_that_are_none(speed, memory, message):
    with pytest.raises(AbridgedError) as fault:
        Limits.of(speed, memory)
    assert message in str(fault.value)


def test_twice_as_fast_is_half_the_originals_seconds():
    here = Machine({}, {}, 1e-3, 0, 2e-2)
    assert Limits(times=2.0).within(here) == (math.inf, pytest.approx(1e-2 - 1e-3))


def test_the_bytes_of_forms_are_those_of_packed_modules(planner):
    assignment = {name: own[-1] for name, own in planner.forms.items()}
    packed = pack_model(built(tiny.build("gpt2"), planner.recipe, assignment))
    biases = sum(m.bias.nbytes for m in packed.modules() if getattr(m, "bias", None) is not None and hasattr(m, "rows"))
    own = {
        id(p): p.nbytes for m in packed.modules() if isinstance(m, PackedModule) for p in m.parameters(recurse=False)
    }
    offsets = {id(m.zeros): m.spec.num_scales for m in packed.modules() if getattr(m, "zeros", None) is not None}
    found = sum(rooms._bytes(planner.sizes.modules(name, form)) for name, form in assignment.items())
    assert abs(found - sum(own.values()) - sum(offsets.values())) <= biases


def test_a_machine_is_measured_once(planner, tmp_path, monkeypatch):
    monkeypatch.setenv("ABRIDGED_CACHE", str(tmp_path))
    monkeypatch.setattr(rooms, "memory", lambda folder: {"in_use_bytes": 10_000_000})
    monkeypatch.setattr(rooms, "decode_seconds", lambda model, ids, new: 0.01)
    assignment = {name: own[0] for name, own in planner.forms.items()}
    given = (tiny.build("gpt2"), planner.recipe, planner.sizes, planner.forms, assignment)
    found = measure(*given, speed=True)
    assert all(0 < seconds < 1 for own in found.seconds.values() for seconds in own.values())
    assert found.tokens_per_second(assignment) <= 100.0 + 1e-6
    assert found.memory(assignment) == 10_000_000
    (kept,) = cache_folder("kernels").iterdir()
    known = json.loads(kept.read_text())
    kept.write_text(json.dumps(dict.fromkeys(known, 2.0)))
    again = measure(*given, speed=True)
    assert {seconds for own in again.seconds.values() for seconds in own.values()} <= {2.0, 4.0}  # tied: read twice
    kept.write_text("{")
    assert max(max(own.values()) for own in measure(*given, speed=True).seconds.values()) < 1


def test_speed_is_not_for_models_that_write_nothing(planner):
    with pytest.raises(AbridgedError, match="--speed is for models that write, and a BertModel does not"):
        measure(tiny.build("bert").base_model, planner.recipe, planner.sizes, planner.forms, {}, speed=True)


def test_more_rows_take_longer():
    def specs(rows):
        lies, rounding = Storage(rows, 256, "int8", "bits", rows), ActivationSpec(kind="dynamic", bits=8)
        return {"it": LinearSpec.of(lies, "float32", kind="linear", bias=False, tied=None, input=rounding)}

    assert rooms._seconds(specs(32_000), "it", 1 << 16) > 3 * rooms._seconds(specs(32), "it", 1 << 16)

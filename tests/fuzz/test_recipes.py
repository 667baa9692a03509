"""Recipes as people, or strangers, may write them: whole ones with odd values, damaged text, and YAML's own traps."""

import json

import pytest
import yaml
from hypothesis import strategies as st

import recipes
from abridged.core import shipped
from abridged.recipe import Recipe
from fuzzing import fuzz

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

SHIPPED = [(shipped.FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in Recipe.names()]
PIECES = [
    *("&a ", "*a", "*two", "<<: *two", "[", "]", "{", "}", ": ", "- ", "? ", "| ", "> ", "#", "'", '"', ",", "\n"),
    *("true", "no", "null", "~", "0", "-1", "1.5", ".inf", "-.inf", ".nan", "1e400", "9" * 30, "9" * 5_000, "1:30"),
    *("0x" + "f" * 5_000, "!!int x", "!!set {a, b}", "!!binary =", "!!timestamp x", "!!python/name:os.system "),
    *("2020-01-01", "2020-99-99", '"\\ud800"', '"\\x1b[2J"', "\x00", "\x1b", "\u2028", "\ufeff", "\t", "---\n"),
    *("%YAML 9.9\n", "stages:", "training:", "steps: ", "[" * 300, "{a: " * 300, "- " * 2_000, "x" * 300_000, "  "),
]
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.integers(), st.floats(), st.text(max_size=4),
    st.sampled_from(["auto", "yes", "no", "quantize", "1e-3", 2**32, 2**63, 1.0, 0.5, 10**4000]),
)  # fmt: skip
ODD = st.recursive(  # what stands in place of a value that is right
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=2),
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *("stages", "stages.0", "stages.*.training", "stages.0.steps", "stages.0.betas", "stages.0.learning_rates", ""),
        *("stages.*.methods.quantize.weights.bits", "stages.0.objectives", "budget.parameters", "stages.9.x", "a..b"),
    ]
)


@st.composite
def texts(draw):
    """The text of a recipe that is shipped, damaged."""
    text = draw(st.sampled_from([*SHIPPED, ""]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(PIECES)) + text[at + draw(st.sampled_from([0, 0, 1, 5, 40])) :]
    return text


@st.composite
def changed(draw):
    """A recipe that is shipped, with other values in some places."""
    value = yaml.safe_load(draw(st.sampled_from(SHIPPED)))
    for _ in range(draw(st.integers(1, 3))):
        node, key = {"": value}, ""
        while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 7)):
            node = node[key]
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if key != "":
            node[key] = draw(ODD)
            if isinstance(node, dict) and draw(st.integers(0, 9)) == 0:
                node[draw(st.text(max_size=5))] = draw(ODD)
    return yaml.safe_dump(value)


@st.composite
def bombs(draw):
    """A few lines that aliases make large, or deep."""
    fan, levels = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    first, more = draw(st.sampled_from([("x", "[{}]"), ("{x: y}", "{{<<: [{}]}}"), ("[]", "{{a: [{}]}}")]))
    lines = [first, *(more.format(", ".join([f"*a{i}"] * fan)) for i in range(levels))]
    return "".join(f"a{i}: &a{i} {line}\n" for i, line in enumerate(lines)) + draw(st.sampled_from(["", "stages: *a3"]))


OVERRIDES = st.lists(
    st.one_of(
        st.tuples(KEYS, st.one_of(st.sampled_from(PIECES), ODD.map(yaml.safe_dump))).map("=".join),
        st.text(max_size=8),
        st.sampled_from(PIECES),
    ),
    max_size=2,
)
INPUTS = st.tuples(st.one_of(texts(), changed(), bombs(), st.sampled_from(SHIPPED)), OVERRIDES)


def test_a_recipe_is_what_it_says_or_one_sentence(tmp_path):
    def kept(example):
        return "recipes/fuzzed.json", json.dumps({"text": example[0], "overrides": example[1]}, indent=1).encode()

    assert fuzz(lambda example: recipes.check(*example, tmp_path / "fuzzed.yaml"), INPUTS, kept)

"""The model card is valid Markdown, YAML and Python, whatever things are called; what is local is not the hub's."""

import ast

import pytest
import yaml

from abridged.checkpoint.model_card import model_card

HOSTILE = ['a"b', "a\n# b", "a`b``c", "a|b", "<img>", "a\\", "---", "[a](b)", "ß: é"]


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_stays_what_it_is(name):
    record = {
        "teacher": {"name": name, "license": name, "description": name, "hub": True},
        "data": {"name": name, "hub": True},
        "recipe": {"name": name, "paper": name},
        "metrics": {name: {name: name}},
    }
    card = model_card(name, record)
    assert front(card)["base_model"] == front(card)["license"] == name
    assert front(card)["datasets"] == [name]
    snippet = card.split("```python\n")[1].split("```")[0]
    loads = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    assert [call.args[0].value for call in loads] == [name, name]
    plain, lines = model_card("a", dict.fromkeys(record, "a") | {"metrics": {"a": {"a": "a"}}}), card.splitlines()
    body = lines[lines.index("---", 1) :]
    assert len(body) == len(plain.splitlines()[plain.splitlines().index("---", 1) :])
    (row,) = [line for line in body if line.startswith("| ") and line != "| metric | value |"]
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 3
    assert sum(line.startswith("#") for line in body) == sum(line.startswith("#") for line in plain.splitlines())


@pytest.mark.parametrize("name", ["bundled", "my-teacher", "wikitext-2", "stem.jsonl", "a/b/c", "a b/c"])
def test_a_local_name_is_not_the_hubs(name):
    assert not {"base_model", "datasets"} & set(front(model_card("small", {"teacher": name, "data": name})))


def test_a_name_of_the_hub_is():
    card = front(model_card("small", {"teacher": {"name": "gpt2", "hub": True}, "data": "somebody/texts"}))
    assert (card["base_model"], card["datasets"]) == ("gpt2", ["somebody/texts"])

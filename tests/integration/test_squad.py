"""From a folder with SQuAD's files to a packed model that finds answers."""

import json

import pytest
import yaml

import isolated
from teachers import make_recipe, write_bert

TOWNS = ["Arden", "Burle", "Corby", "Dunmore", "Elsing", "Farley"]
QUICK = ["evaluate_every=50", "save_every=50", "compile=no", "mixed_precision=no", "batch_size=8", "context=40"]


def paragraphs(shift):
    for i in range(12):
        town, river = TOWNS[(i + shift) % 6], TOWNS[(i * 5 + shift + 1) % 6] + "water"
        text = f"the town is {town} and the river is {river} ."
        asked = [("which town ?", town), ("which river ?", river)]
        yield {
            "context": text,
            "qas": [{"question": q, "answers": [{"text": a, "answer_start": text.index(a)}]} for q, a in asked],
        }


def test_from_its_files_to_a_packed_model(tmp_path):
    for name, count in (("train-v1.1.json", 10), ("dev-v1.1.json", 1)):
        rows = [p for shift in range(count) for p in paragraphs(shift)]
        (tmp_path / name).write_text(json.dumps({"data": [{"paragraphs": rows}]}))
    model = write_bert(tmp_path / "bert", " ".join(p["context"] for p in paragraphs(0)) * 4)
    more = [word for pair in (*QUICK, "steps=120", "learning_rate=3e-3") for word in ("--set", pair)]
    arguments = ["--task", "squad", "--data", tmp_path, "--output", tmp_path / "teacher", "--json"]
    ended = isolated.abridged("finetune", model, *arguments, *more, folder=tmp_path / "a")
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["test"]["f1"] > record["validation"]["before"]["f1"]
    assert set(record["test"]) == {"score", "f1", "exact_match", "texts"}
    recipe = make_recipe(objectives={"logits": {}, "hidden": {"weight": 0.1}}, context=40)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    compress = ["compress", tmp_path / "teacher", "--recipe", tmp_path / "recipe.yaml", "--task", "squad"]
    ended = isolated.abridged(
        *compress, "--data", tmp_path, "--output", tmp_path / "small", "--json", folder=tmp_path / "b"
    )
    assert ended.code == 0, ended.stderr
    metrics = json.loads(ended.stdout)["metrics"]
    assert metrics["teacher"]["f1"] == pytest.approx(record["test"]["f1"])
    ended = isolated.abridged(
        "evaluate", tmp_path / "small", "--task", "squad", "--data", tmp_path, "--context", "40", "--json",
        folder=tmp_path / "c",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["exact_match"] == metrics["student"]["exact_match"]


def test_a_folder_without_its_files(tmp_path):
    model = write_bert(tmp_path / "bert", "some words " * 40)
    arguments = ["--task", "squad", "--data", tmp_path, "--output", tmp_path / "teacher"]
    ended = isolated.abridged("finetune", model, *arguments, folder=tmp_path / "a")
    assert ended.code == 1
    assert "has no train-v1.1.json" in ended.stderr

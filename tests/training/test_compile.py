"""Training with compiled blocks where texts differ in length, which torch traces in a way of its own."""

import json

import pytest
import yaml

import abridged
from abridged.core.hardware import can_compile
from teachers import QUANTIZE, make_recipe, write_bert, write_reviews

QUICK = ["epochs=null", "steps=2", "batch_size=8", "compile=no"]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch has no compiler here")
@pytest.mark.parametrize("activations", [QUANTIZE["activations"], {"bits": 8, "quantizer": "dynamic"}])
def test_texts_of_different_lengths_train_as_without_compiling(tmp_path, activations):
    reviews = write_reviews(tmp_path / "reviews.tsv")
    write_bert(tmp_path / "bert", reviews.read_text())
    abridged.finetune(tmp_path / "bert", reviews, tmp_path / "teacher", overrides=QUICK)
    losses = []
    for compile_ in ("no", "yes"):
        stages = make_recipe(
            quantize={"activations": activations},
            objectives={"hidden": {}, "attention": {"loss": "mse"}, "logits": {}},
            learning_rates={},
            steps=3,
            evaluate_every=3,
            compile=compile_,
        )
        recipe, student = tmp_path / f"{compile_}.yaml", tmp_path / compile_
        recipe.write_text(yaml.safe_dump(stages))
        abridged.compress(tmp_path / "teacher", recipe, reviews, student)
        lines = (student / "metrics.jsonl").read_text().splitlines()
        losses.append([r["loss"] for r in map(json.loads, lines) if r["event"] == "train"])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)

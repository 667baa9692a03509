"""Whole runs with Kronecker factors: two stages with quantisation after, an interrupted one, dropped layers, BERT."""

import json

import pytest
import torch

import abridged
from abridged.checkpoint.load import load
from abridged.runtime.kronecker import factored_modules
from abridged.runtime.modules import PackedModule
from teachers import QUANTIZE, TRAINING, write_bert, write_reviews

FACTORS = {"layers": "odd"}
ILKD = {"hidden": {"layers": {0: 0}}, "attention": {"loss": "kl"}, "feed_forward": {}, "labels": {}}


def recipe(*stages, **training):
    return {
        "name": "tiny",
        "stages": [
            {
                "methods": methods,
                "objectives": objectives,
                "training": {**TRAINING, "steps": 4, "learning_rates": {}, **training},
            }
            for methods, objectives in stages
        ],
    }


@pytest.fixture(scope="module")
def composed(teacher, text, tmp_path_factory):
    """Factors first, then their quantisation."""
    output = tmp_path_factory.mktemp("composed") / "small"
    stages = recipe(({"kronecker": FACTORS}, ILKD), ({"kronecker": FACTORS, "quantize": QUANTIZE}, {"logits": {}}))
    return abridged.compress(teacher, stages, text, output), output


def test_factors_are_quantised_in_a_later_stage(composed):
    record, output = composed
    model = load(output)
    found = factored_modules(model)
    assert "transformer.h.1.mlp.c_fc" in found
    assert "transformer.h.0.mlp.c_fc" not in found
    assert all(isinstance(pair.left, PackedModule) for module in found.values() for _, pair in module.pairs())
    assert record["size"]["stored_parameters"] < record["size"]["parameters"]
    page = (output / "report.html").read_text()
    assert "Matrices as Kronecker products" in page
    assert "nearest factors, round to nearest, untrained" in page


def test_every_objective_of_ilkd_is_measured(composed):
    _, output = composed
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["event"] == "train" and line["stage"] == 0)
    assert set(ILKD) <= set(first)
    assert all(first[name] > 0 for name in ILKD)


def test_an_interrupted_run_goes_on_to_the_same_weights(teacher, text, tmp_path, monkeypatch):
    from abridged.training.loop import Trainer

    stages = recipe(({"kronecker": FACTORS}, ILKD), ({"kronecker": FACTORS}, {"labels": {}}))
    abridged.compress(teacher, stages, text, tmp_path / "whole")
    step, taken = Trainer.step, []

    def interrupted(self):
        if len(taken) == 7:
            raise KeyboardInterrupt
        taken.append(1)
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            abridged.compress(teacher, stages, text, tmp_path / "again")
    abridged.compress(teacher, stages, text, tmp_path / "again", resume=True)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_fewer_layers_are_trained_and_stored(teacher, text, tmp_path):
    stages = recipe(({"drop_layers": {"keep": "half"}}, {"logits": {}, "feed_forward": {}, "hidden": {}}))
    record = abridged.compress(teacher, stages, text, tmp_path / "small")
    assert len(load(tmp_path / "small").transformer.h) == 1
    assert record["metrics"]["student"]["perplexity"] > 0


def test_a_classifier_is_factored_too(tmp_path):
    reviews = write_reviews(tmp_path / "reviews.tsv", rows=60)
    bert = write_bert(tmp_path / "bert", reviews.read_text())
    abridged.finetune(bert, reviews, tmp_path / "teacher", overrides=["steps=2", "batch_size=4"])
    objectives = {**ILKD, "logits": {}}
    stages = recipe(({"kronecker": {"layers": "all", "rank": 2}}, objectives), batch_size=4)
    abridged.compress(tmp_path / "teacher", stages, reviews, tmp_path / "small")
    model = load(tmp_path / "small")
    assert len(factored_modules(model)) == 1 + 2 * 6
    with torch.no_grad():
        assert torch.isfinite(model(torch.randint(5, 300, (2, 7))).logits).all()

"""Pruning from one command to a directory: cut, fine-tuned, quantised, saved, loaded, resumed."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import abridged
from abridged.cli.app import app
from abridged.core.errors import AbridgedError
from abridged.models.load import load_model
from abridged.recipe import Recipe
from abridged.training.loop import Trainer

SHORT = [
    "stages.*.steps=6",
    "stages.*.batch_size=4",
    "stages.*.evaluate_every=3",
    "stages.*.save_every=2",
    "stages.*.evaluate_tokens=200",
    "stages.*.compile=no",
    "stages.*.mixed_precision=no",
]


@pytest.mark.parametrize("name", ["vtrans-quantgpt", "best-vtrans-2-2-8"])
def test_one_command_prunes_quantises_and_reports(name, teacher, text, tmp_path):
    settings = [part for value in (*SHORT, "budget.parameters=0.5") for part in ("--set", value)]
    paths = ["--data", str(text), "--output", str(tmp_path / "small")]
    found = CliRunner().invoke(app, ["compress", str(teacher), "--recipe", name, *paths, *settings])
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "small" / "abridged.json").read_text())
    facts = record["methods"]["prune"]
    assert 0.49 * facts["before"] < facts["reached"] <= 0.5 * facts["before"]
    assert record["size"]["parameters"] == facts["before"]
    assert record["size"]["ratio"] > 8
    assert "pruned away" in (tmp_path / "small" / "report.html").read_text()
    model, tokenizer = load_model(tmp_path / "small")
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False).shape == (1, 7)
    code = (
        "import sys, abridged, transformers, torch; "
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, min_new_tokens=4).shape[1])"
    )
    fresh = subprocess.run([sys.executable, "-c", code, str(tmp_path / "small")], capture_output=True, text=True)
    assert fresh.stdout.strip() == "7", fresh.stderr


@pytest.mark.parametrize(
    "name", ["best-vtrans", "best-bert-vtrans", "fast-vtrans", "faster-vtrans", "faster-vtrans-lora"]
)
def test_the_fast_variants_run(name, teacher, text, tmp_path):
    recipe = Recipe.load(name, [*SHORT, "stages.0.data_share=0.2"])
    record = abridged.compress(teacher, recipe, text, tmp_path / "small")
    assert record["methods"]["prune"]["reached"] <= 0.5 * record["methods"]["prune"]["before"]


@pytest.mark.parametrize("masks", ["l0", "taylor"])
def test_baselines_differ_in_one_setting(masks, teacher, text, tmp_path):
    recipe = Recipe.load("vtrans", [*SHORT, f"stages.0.methods.prune.masks={masks}"])
    record = abridged.compress(teacher, recipe, text, tmp_path / "small")
    assert record["methods"]["prune"]["reached"] <= 0.5 * record["methods"]["prune"]["before"]


def test_frozen_weights_stay_as_they_are(teacher, text, tmp_path, monkeypatch):
    seen = {}
    original = Trainer.train

    def train(self):
        model = self.run.system.model
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        original(self)
        same = {n: torch.equal(p, before[n]) for n, p in model.named_parameters()}
        seen[self.run.stage] = {n for n, equal in same.items() if not equal}

    monkeypatch.setattr(Trainer, "train", train)
    abridged.compress(teacher, Recipe.load("faster-vtrans", SHORT), text, tmp_path / "small")
    assert seen[0]
    assert all(name.startswith("pruning_masks.") for name in seen[0])
    assert not any(name.startswith("pruning_masks.") for name in seen[1])


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("name", ["vtrans", "best-vtrans", "faster-vtrans-lora"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(name, stage, teacher, text, tmp_path, monkeypatch):
    recipe = Recipe.load(name, [*SHORT, "stages.0.data_share=0.5"])
    whole = abridged.compress(teacher, recipe, text, tmp_path / "whole")
    step = Trainer.step

    def broken(self):
        if self.run.stage == stage and self.state.step == 4:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        abridged.compress(teacher, recipe, text, tmp_path / "again")
    monkeypatch.setattr(Trainer, "step", step)
    again = abridged.compress(teacher, recipe, text, tmp_path / "again", resume=True)
    assert again["metrics"]["student"]["perplexity"] == whole["metrics"]["student"]["perplexity"]
    assert again["methods"] == whole["methods"]
    assert again["files"] == whole["files"]


def test_a_budget_that_cannot_be_ends_in_one_sentence(teacher, text, tmp_path):
    with pytest.raises(AbridgedError, match="smallest possible model takes"):
        abridged.compress(teacher, Recipe.load("vtrans", [*SHORT, "budget.parameters=1e-4"]), text, tmp_path / "no")


@pytest.mark.parametrize("name", ["vtrans", "best-vtrans"])
def test_encoder_decoders_are_pruned_by_the_same_recipe(name, tmp_path):
    import teachers

    source = teachers.write_bart(tmp_path, teachers.FABLES.read_text())
    recipe = Recipe.load(name, [*SHORT, "stages.*.steps=2", "stages.*.context=24", "budget.parameters=0.6"])
    record = abridged.compress(source, recipe, teachers.FABLES, tmp_path / "small", columns=("text", "summary"))
    assert record["methods"]["prune"]["reached"] <= 0.6 * record["methods"]["prune"]["before"]

"""The view that a checkpoint records: found again without a stand-in, and refused where it does not fit."""

import json

import pytest
import torch

import tiny
from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.methods.quantization.method import Quantize
from forgery import as_version

QUANTIZE = {"activations": {"bits": None}}


def saved(name, directory):
    model = tiny.build(name)
    Quantize.model_validate(QUANTIZE).build(model, families.view(model), lambda model, tokens=None: None).finish()
    save_checkpoint(model, directory, None, {"recipe": {"name": "test"}, "teacher": name, "seed": 0})
    return model.eval()


def rewrite(directory, change):
    """Change quantization_config; what abridged.json knows of the files stays."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["gpt2", "phi3", "t5"])
def test_it_is_loaded_as_it_was_saved_and_nothing_is_derived(name, tmp_path, monkeypatch):
    model = saved(name, tmp_path / "small")
    expected = families.view(model)

    def derive(kind, config):
        raise AssertionError("a view was derived")

    monkeypatch.setattr("abridged.families.derive.derive", derive)
    monkeypatch.setattr("abridged.families._KNOWN", {})
    loaded = load(tmp_path / "small")
    assert families.view(loaded) == expected
    loaded.save_pretrained(tmp_path / "again")
    assert families.view(load(tmp_path / "again")) == expected


def test_version_1_still_loads_and_its_view_is_derived(tmp_path):
    model = saved("gpt2", tmp_path / "small")
    expected = families.view(model)

    as_version(tmp_path / "small", 1)
    loaded = load(tmp_path / "small")
    assert families.view(loaded) == expected
    with torch.no_grad():
        ids = tiny.inputs(model)["input_ids"]
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["matrices"][3].update(rows=63), "view: transformer.h.0.attn.c_proj is 63x64"),
        (lambda v: v["matrices"][3].update(rows=0), "view: matrices.3.rows"),
        (lambda v: v["matrices"][3].update(rows=1 << 40), "view: matrices.3.rows"),
        (lambda v: v["matrices"][3].update(colour="red"), "view: matrices.3.colour"),
        (lambda v: v["matrices"][3].update(name="../x"), "view: matrices.3.name"),
        (lambda v: v["parts"][0].update(units=1 << 20), "units of transformer.h.0.attn do not divide"),
        (lambda v: v["parts"][0]["runs"].clear(), "does not say which rows the units of transformer.h.0.attn are"),
        (lambda v: v["parts"][1]["runs"]["transformer.h.0.mlp.c_fc"][0].update(offset=1), "have more rows than"),
        (lambda v: v["norms"].append("transformer.ln_g"), "no module transformer.ln_g"),
        (lambda v: v.update(hidden_size="64"), "view: hidden_size"),
        (lambda v: v["blocks"].pop(), "not as many blocks as layers"),
    ],
)
def test_a_view_that_fits_nothing_is_refused(change, words, tmp_path, monkeypatch):
    saved("gpt2", tmp_path / "small")
    rewrite(tmp_path / "small", lambda spec: change(spec["view"]))
    monkeypatch.setattr("abridged.checkpoint.verify.digest_check", lambda *given: lambda: None)
    monkeypatch.setattr("abridged.checkpoint.verify.check_file", lambda *given: None)
    with pytest.raises(AbridgedError, match=words):
        load(tmp_path / "small")

"""Checkpoints of models that were cut: the way through a file and a fresh process, and what a forger may try."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from abridged import families
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.methods.pruning.method import Prune
from abridged.methods.quantization.method import Quantize
from forgery import change_config
from pruned import IDS, MASK, MODELS, answer, build, parts, small

RECORD = {"recipe": {"name": "test"}, "teacher": "tiny", "seed": 0}


def saved(name, directory, quantized=False):
    model = small(name, removed=(parts(build(name), "attention")[1], parts(build(name), "ffn")[0]))
    if quantized:
        bits = {"bits": 4, "initialization": "least_squares"}
        method = Quantize.model_validate({"weights": bits, "embeddings": bits, "activations": {"attention": True}})
        more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
        attached = method.build(
            model, families.view(model), lambda model: model(input_ids=IDS, attention_mask=MASK, **more)
        )
        attached.finish()
    save_checkpoint(model.eval(), directory, None, RECORD)
    return model


@pytest.mark.parametrize("quantized", [False, True], ids=["pruned", "pruned and quantised"])
@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_answers_the_same(name, quantized, tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = saved(name, tmp_path / "small", quantized)
    loaded = load(tmp_path / "small")
    assert type(loaded) is type(model)
    assert torch.allclose(answer(loaded), answer(model), atol=1e-5)
    assert families.view(loaded) == families.view(model)


@pytest.mark.parametrize("name", ["gpt2", "bert", "bart"])
def test_a_fresh_process_loads_it(name, tmp_path):
    model = saved(name, tmp_path / "small")
    code = (
        "import abridged, torch, transformers, sys; "
        f"model = transformers.{type(model).__name__}.from_pretrained(sys.argv[1]).eval(); "
        "ids = torch.tensor([[5, 6, 7, 8]]); "
        "more = {'decoder_input_ids': ids} if model.config.is_encoder_decoder else {}; "
        "print(model(input_ids=ids, **more).logits.sum().item())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "small")], capture_output=True, text=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(model(input_ids=ids, **more).logits.sum().item(), abs=1e-3)


def test_the_base_model_alone(tmp_path):
    model = saved("gpt2", tmp_path / "small")
    base = transformers.AutoModel.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        assert torch.allclose(base(IDS)[0], model.transformer(IDS)[0], atol=1e-5)


def test_ratios_are_against_the_model_before(tmp_path):
    model = saved("gpt2", tmp_path / "small")
    before = sum(p.numel() for p in build("gpt2").parameters())
    found = inspect(tmp_path / "small")
    assert found["dense_bytes"] == 4 * before
    assert found["ratio"] == pytest.approx(4 * before / found["file_bytes"])
    assert found["parts"]["pruned away"]["parameters"] == before - sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_budget_of_bytes_is_that_of_the_file(share, tmp_path):
    model = build("bert")
    method = Prune.model_validate({"budget": {"bytes": share}, "masks": "magnitude"})
    attached = method.build(model, families.view(model), lambda model: None)
    facts = attached.finish().facts["prune"]
    save_checkpoint(model.eval(), tmp_path / "small", None, RECORD)
    size = inspect(tmp_path / "small")["file_bytes"]
    assert 0.9 * facts["asked"] < size <= facts["reached"] <= facts["asked"]


@pytest.fixture
def forged(tmp_path):
    saved("gpt2", tmp_path / "small")

    def change(alter):
        change_config(tmp_path / "small", lambda config: alter(config["quantization_config"]["shapes"]))
        return tmp_path / "small"

    return change


def attack(key, path, value):
    def alter(shapes):
        shapes[key][path] = value

    return alter


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (attack("sizes", "transformer.wte", [96, 1 << 30]), "config.json makes it"),
        (attack("sizes", "transformer.wte", [96, 1 << 40]), "absurd size"),
        (attack("sizes", "transformer.wte", [96, 0]), "absurd size"),
        (attack("sizes", "transformer.wte", [96, -1]), "absurd size"),
        (attack("sizes", "transformer.wte", [96]), "no such size"),
        (attack("sizes", "transformer.wte", [96, "7"]), "sizes"),
        (attack("sizes", "transformer.wte", [96, 3]), "wide|tied"),
        (attack("sizes", "transformer.h.2.mlp.c_fc", [3, 20]), "columns|widths|wide"),
        (attack("sizes", "transformer.h.9.mlp.c_fc", [3, 20]), "no module"),
        (attack("sizes", "transformer.h", [3, 20]), "no such size"),
        (attack("heads", "transformer.h.0.attn", 1 << 20), "fewer"),
        (attack("heads", "transformer.h.0.attn", 0), "absurd number"),
        (attack("heads", "transformer.ln_f", 2), "no heads"),
        (lambda shapes: shapes["removed"].append("transformer.h"), "cannot be taken out"),
        (lambda shapes: shapes["removed"].append("transformer.wte"), "cannot be taken out"),
        (lambda shapes: shapes["removed"].append("nowhere"), "no module"),
        (lambda shapes: shapes.update(parameters=1 << 60), "parameters"),
        (lambda shapes: shapes.update(more=1), "more"),
    ],
)
def test_forged_shapes_end_in_one_sentence(forged, alter, message):
    with pytest.raises(AbridgedError, match=message):
        load(forged(alter))


def test_without_abridged_it_does_not_load(tmp_path):
    saved("gpt2", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")

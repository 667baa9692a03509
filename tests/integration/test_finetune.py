"""A teacher from a config or from another model, through the command line."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import isolated
from abridged.data.text import load_text
from isolated import Stop

CONFIG = {
    "architecture": "gpt2",
    "model": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.1},
    "tokenizer": {"vocab_size": 300},
    "training": {
        "steps": 8, "epochs": None, "batch_size": 4, "learning_rate": 1e-2, "evaluate_every": 4, "save_every": 3,
        "evaluate_tokens": 200, "compile": "no", "mixed_precision": "no",
    },
}  # fmt: skip


@pytest.fixture
def finetune(tmp_path, text):
    """finetune(output, model or None for the config, *more, stop=…) -> how the command ended."""
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(CONFIG))
    count = iter(range(100))

    def run(output, *more, model=None, **launch):
        arguments = ["finetune", model or tmp_path / "model.yaml", "--data", text, "--output", tmp_path / output]
        return isolated.abridged(*arguments, *more, folder=tmp_path / f"process-{next(count)}", **launch)

    return run


def test_from_a_config(finetune, tmp_path):
    ended = finetune("teacher", "--json")
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record == json.loads((tmp_path / "teacher" / "abridged.json").read_text())
    assert record["validation"]["after"]["perplexity"] < 300  # 300 is to know nothing
    assert [m["step"] for m in record["curve"]] == [0, 4, 8]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "teacher")) == model.config.vocab_size == 300
    assert str(tmp_path) not in (tmp_path / "teacher" / "abridged.json").read_text()


def test_from_a_model_and_stored_in_half(finetune, tmp_path, teacher, text):
    settings = ["steps=3", "batch_size=4", "evaluate_tokens=200", "compile=no", "mixed_precision=no"]
    more = [word for setting in settings for word in ("--set", setting)]
    ended = finetune("teacher", *more, "--dtype", "float16", "--json", model=teacher)
    assert ended.code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["validation"]["before"]["perplexity"] != record["validation"]["after"]["perplexity"]
    stored = load_file(tmp_path / "teacher" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    # what was measured is what was stored
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(load_text(text).validation)
    measured = isolated.abridged("evaluate", tmp_path / "teacher", "--data", held_out, "--json", folder=tmp_path / "e")
    assert json.loads(measured.stdout)["perplexity"] == pytest.approx(
        record["validation"]["after"]["perplexity"], rel=1e-5
    )


def test_resumed_with_dropout_it_is_the_same(finetune, tmp_path):
    assert finetune("whole").code == 0
    assert finetune("parts", stop=Stop("abridged.training.loop:Trainer.step", 6)).code == -9
    ended = finetune("parts", "--resume")
    assert ended.code == 0, ended.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_gradient_checkpointing_makes_the_same_teacher(finetune, tmp_path):
    assert finetune("plain").code == 0
    ended = finetune("saving", "--set", "gradient_checkpointing=true")
    assert ended.code == 0, ended.stderr
    plain, saving = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "saving"))
    for name in plain:
        torch.testing.assert_close(plain[name], saving[name])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architecture": "gtp2"}, "cannot make a model"),
        ({"model": {"n_embed": 32}}, "unknown key model.n_embed, did you mean 'n_embd'?"),
        ({"tokenizer": {}}, "vocab_size"),
        ({"training": {"step": 1}}, "unknown key training.step"),
        ({"modle": {}}, "unknown key modle"),
    ],
)
def test_a_config_that_is_wrong(finetune, tmp_path, change, word):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **change}))
    ended = finetune("teacher", model=path)
    assert ended.code == 1
    assert word in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("teacher*"))

"""`abridged bench` on a small student: every number is there, and what is measured is what it says."""

import json
import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from abridged import families
from abridged.checkpoint.save import save_checkpoint
from abridged.cli.app import app
from abridged.core.errors import AbridgedError
from abridged.evaluation.speed import bench, in_turns, memory
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense
from abridged.runtime.decoding import prepared
from abridged.runtime.kernels import kernels
from students import quantized_student
from teachers import write_bart


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("speed") / "small"
    student = quantized_student(activations={"bits": 8, "attention": False})
    save_checkpoint(student.eval(), directory, None, {"recipe": {"name": "test"}, "teacher": "t", "seed": 0})
    return directory


@pytest.mark.slow
def test_bench_measures_the_packed_and_the_dense_model(small):
    command = ["bench", str(small), "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    for name in ("packed", "dense"):
        row = measured[name]
        for key in ("prompt_tokens_per_second", "decode_tokens_per_second", "load_seconds", "in_use_bytes"):
            assert 0 < row[key] < math.inf
        assert row["peak_bytes"] >= row["resident_bytes"]
    assert measured["packed"]["file_bytes"] < measured["dense"]["file_bytes"]
    shown = CliRunner().invoke(app, command)
    assert "dense, FP32" in shown.output
    assert f"fast steps: {'yes' if measured['fast_steps'] else 'no, because'}" in shown.output


@pytest.mark.skipif(kernels() is None, reason="the kernels were not compiled, or are not asked for")
def test_who_asks_is_told_whether_steps_are_fast(small, monkeypatch):
    shown = CliRunner().invoke(app, ["inspect", str(small), "--load"])
    assert "fast steps" in shown.output
    assert "yes" in shown.output
    monkeypatch.setattr(prepared, "difference", lambda model, steps: 0.5)
    told = json.loads(CliRunner().invoke(app, ["inspect", str(small), "--load", "--json"]).stdout)
    assert told["fast_steps"] is False
    assert told["why_not"] == "their logits are 0.5 of a standard deviation off transformers' own"


@pytest.mark.slow
def test_an_encoder_decoder_reads_by_its_encoder_and_writes_by_beams(tmp_path):
    model = load_dense(write_bart(tmp_path / "bart", "some words to learn a tokenizer on " * 40))
    ids = torch.zeros(1, 4, dtype=torch.long)
    method = Quantize.model_validate({"activations": {"bits": 8, "quantizer": "dynamic"}})
    attached = method.build(model, families.view(model), lambda model: model(input_ids=ids, decoder_input_ids=ids))
    attached.finish()
    save_checkpoint(model.eval(), tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": "t", "seed": 0})
    measured = bench(tmp_path / "small", prompt_tokens=64, new_tokens=8, rounds=1)
    assert (measured["beams"], measured["prompt_tokens"]) == (4, 64)
    for name in ("packed", "dense"):
        assert 0 < measured[name]["prompt_tokens_per_second"] < math.inf
        assert 0 < measured[name]["decode_tokens_per_second"] < math.inf
    with pytest.raises(AbridgedError, match="63 new tokens leave no room"):
        bench(tmp_path / "small", new_tokens=63)


@pytest.fixture(scope="module")
def labeller(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=40, **sizes))
    method = Quantize.model_validate({"activations": {"bits": 8, "quantizer": "dynamic"}})
    method.build(model, families.view(model), lambda model: None)
    directory = tmp_path_factory.mktemp("labeller") / "small"
    save_checkpoint(model.eval(), directory, None, {"recipe": {"name": "test"}, "teacher": "t", "seed": 0})
    return directory


@pytest.mark.slow
def test_what_labels_texts_is_measured_by_the_text(labeller):
    command = ["bench", str(labeller), "--prompt-tokens", "16", "--rounds", "1"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    for name in ("packed", "dense"):
        assert all(0 < measured[name]["texts_per_second"][size] < math.inf for size in ("1", "32"))
    shown = CliRunner().invoke(app, command).output
    assert "32 at once" in shown
    assert "16 tokens a text" in shown


def test_lengths_that_the_model_does_not_have_are_refused(small):
    with pytest.raises(AbridgedError, match="4000 new tokens leave no room for a prompt in the model's"):
        bench(small, new_tokens=4000)


def test_texts_longer_than_the_models_positions_are_refused(labeller):
    with pytest.raises(AbridgedError, match="128 tokens are more than the model's 40 positions"):
        bench(labeller)


def test_memory_of_what_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(AbridgedError, match="cannot measure"):
        memory(tmp_path)


def test_contestants_take_turns():
    order = []
    answers = {"a": iter([9.0, 3.0, 1.0, 2.0]), "b": iter([9.0, 4.0, 4.0, 4.0])}  # the first does not count

    def contestant(name):
        order.append(name)
        return next(answers[name])

    medians = in_turns({name: lambda n=name: contestant(n) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4
    assert medians == {"a": 2.0, "b": 4.0}

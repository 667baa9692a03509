"""A head that the config ties to the embedding, and that the weights have of its own: T5 1.1 and mT5 as published."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

import tiny
from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.exporters import export
from abridged.methods.quantization.method import Quantize
from abridged.models.streamed import Weights


@pytest.fixture(scope="module", params=["t5", "flan-t5", "mt5"])
def directory(request, tmp_path_factory):
    """Of a model whose config says that its head is the embedding."""
    where = tmp_path_factory.mktemp("teacher") / "model"
    tiny.build(request.param).save_pretrained(where)
    weights = load_file(where / "model.safetensors")
    head = torch.randn(weights["shared.weight"].shape, generator=torch.Generator().manual_seed(1))
    save_file(weights | {"lm_head.weight": head}, where / "model.safetensors", {"format": "pt"})
    return where


def answers(model):
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=ids).logits


def own_head(view):
    return [(m.part, m.tied) for m in view.matrices if m.name == "lm_head"] == [("head", ())]


@pytest.mark.parametrize("exceptions", [{}, {"lm_head": {"bits": None}}], ids=["packed", "left alone"])
def test_it_keeps_what_it_learned_through_packing_loading_saving_and_export(directory, tmp_path, exceptions):
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    assert own_head(families.view(model))
    student = copy.deepcopy(model)
    method = {
        "weights": {"bits": 4},
        "embeddings": {"bits": 4},
        "activations": {"bits": None},
        "exceptions": exceptions,
    }
    attached = Quantize.model_validate(method).build(student, families.view(student), lambda model, tokens=None: None)
    attached.finish()
    expected = answers(student)
    save_checkpoint(student, tmp_path / "small", None, {})
    loaded = load(tmp_path / "small")
    assert torch.allclose(answers(loaded), expected, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.allclose(answers(load(tmp_path / "again")), expected, atol=1e-5)
    export(tmp_path / "small", tmp_path / "dense", "dense", dtype="float32")
    assert torch.allclose(answers(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "dense")), expected, atol=1e-4)


def test_streamed_weights_tell_it_from_one_that_is_only_written_twice(directory, tmp_path):
    assert own_head(families.view(Weights(directory).model))
    weights = load_file(directory / "model.safetensors")
    AutoModelForSeq2SeqLM.from_pretrained(directory).config.save_pretrained(tmp_path)
    save_file(weights | {"lm_head.weight": weights["shared.weight"].clone()}, tmp_path / "model.safetensors")
    assert not own_head(families.view(Weights(tmp_path).model))

"""LLaMA and its relatives: the view, and the way from a random model to a packed directory that answers the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.methods.quantization.method import Quantize
from students import IDS, logits

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


def build(family="llama", **config):
    sizes = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    described = CONFIGS[family](**{**sizes, **heads, "bos_token_id": 0, "eos_token_id": 0, **config})
    model = AutoModelForCausalLM.from_config(described).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "config", [{}, {"tie_word_embeddings": True}, {"head_dim": 16}], ids=["untied", "tied", "wide"]
)
def test_every_matrix_is_named_with_its_shape(family, config):
    model = build(family, **config)
    view = families.view(model)
    shapes = {f"{matrix.name}.weight": (matrix.rows, matrix.columns) for matrix in view.matrices}
    assert shapes == {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2}
    for path in (*view.attentions, *view.blocks):
        model.get_submodule(path)
    tied = [matrix.tied for matrix in view.matrices if matrix.tied]
    assert tied == ([("lm_head",)] if model.config.tie_word_embeddings else [])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("attention", [False, True], ids=["plain", "quantised attention"])
def test_packed_saved_and_loaded_it_answers_as_in_training(family, tied, attention, tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = build(family, tie_word_embeddings=tied)
    method = Quantize.model_validate({"activations": {"bits": 8, "attention": attention}})
    attached = method.build(model, families.view(model), lambda model: model(IDS))
    attached.finish()
    expected = logits(model.eval())
    save_checkpoint(model, tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": family, "seed": 0})
    loaded = load(tmp_path / "small")
    assert type(loaded) is type(model)
    assert torch.allclose(logits(loaded), expected, atol=1e-4)
    answer = loaded.generate(IDS[:1, :4], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert answer.shape == (1, 10)

"""Layer dropping: which layers stay, and that what is left is an ordinary model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.methods.layers import DropLayers, every_other
from abridged.methods.quantization.method import Quantize

IDS = torch.randint(64, (1, 8), generator=torch.Generator().manual_seed(0))


def gpt2(layers=4):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, n_layer=layers)).eval()


def drop(model, **settings):
    DropLayers.model_validate(settings).build(model, families.view(model), None)
    return model


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (12, [0, 2, 4, 7, 9, 11]),
        (4, [0, 3]),
        (6, [0, 3, 5]),
        (2, [0]),
        (1, [0]),
        (24, [*range(0, 12, 2), *range(13, 24, 2)]),
    ],
)
def test_every_other_layer_as_distilgpt2_s_authors_do(layers, kept):
    assert every_other(layers) == kept


def test_the_layers_that_stay_answer_and_decode_in_order():
    model, whole = drop(gpt2(), keep=[1, 3]), gpt2()
    assert model.config.num_hidden_layers == len(model.transformer.h) == families.view(model).layers == 2
    for ours, theirs in zip(model.transformer.h, (whole.transformer.h[1], whole.transformer.h[3]), strict=True):
        assert torch.equal(ours.mlp.c_fc.weight, theirs.mlp.c_fc.weight)
    with torch.no_grad():
        full = model(IDS).logits
        past = model(IDS[:, :-1], use_cache=True).past_key_values
        last = model(IDS[:, -1:], past_key_values=past).logits
    assert torch.allclose(last[:, 0], full[:, -1], atol=1e-5)


@pytest.mark.parametrize("quantized", [False, True])
def test_it_is_stored_with_fewer_layers(quantized, tmp_path):
    model = drop(gpt2())
    if quantized:
        Quantize().build(model, families.view(model), lambda model: model(IDS))
    save_checkpoint(model.eval(), tmp_path / "small", None, {})
    for loaded in (load(tmp_path / "small"), AutoModelForCausalLM.from_pretrained(tmp_path / "small")):
        assert len(loaded.transformer.h) == 2
        with torch.no_grad():
            assert torch.allclose(loaded(IDS).logits, model(IDS).logits, atol=1e-5)


def test_a_second_stage_drops_nothing_more():
    model = drop(gpt2())
    drop(model)
    assert len(model.transformer.h) == 2
    with pytest.raises(AbridgedError, match="an earlier stage has dropped other layers"):
        drop(model, keep=[0])


@pytest.mark.parametrize("keep", [[4], [-1], []])
def test_layers_that_are_not_there(keep):
    with pytest.raises(AbridgedError, match="are not layers of a model whose last one is 3"):
        drop(gpt2(), keep=keep)

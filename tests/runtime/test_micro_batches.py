"""A large batch that passes an encoder's layers in portions gives what it gives whole."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.methods.quantization.method import Quantize
from abridged.runtime import micro_batches
from abridged.runtime.kernels import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="only what runs on the kernels is split")
SIZES = {"vocab_size": 60, "max_position_embeddings": 64}
IDS = torch.randint(3, 60, (7, 20), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[2, 5:] = 0


def bert():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**SIZES, **sizes))


def bart():
    layers = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return BartForConditionalGeneration(BartConfig(**SIZES, **sizes, **layers))


@pytest.fixture(params=[bert, bart], ids=["bert", "bart"])
def model(request, tmp_path):
    torch.manual_seed(0)
    model = request.param().eval()
    method = Quantize.model_validate({"activations": {"bits": 8, "quantizer": "dynamic"}})
    method.build(model, families.view(model), lambda model: None)
    save_checkpoint(model, tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": "t", "seed": 0})
    return load(tmp_path / "small")


def layers_of(model):
    return [m for m in model.modules() if isinstance(getattr(m, "forward", None), micro_batches.Portions)]


def answer(model, **settings):
    with torch.no_grad():
        found = model(input_ids=IDS, attention_mask=MASK, **settings)
    return found


def rows_seen(monkeypatch, model):
    """How many texts each call of the first layer's own forward has."""
    portions, seen = layers_of(model)[0].forward, []
    own = portions._forward

    def spy(states, *args, **kwargs):
        seen.append(len(states))
        return own(states, *args, **kwargs)

    monkeypatch.setattr(portions, "_forward", spy)
    return seen


def test_portions_change_nothing(model, monkeypatch):
    assert len(layers_of(model)) == 2
    whole = answer(model).logits
    seen = rows_seen(monkeypatch, model)
    monkeypatch.setattr(micro_batches, "TOKENS", 45)
    assert torch.allclose(answer(model).logits, whole, atol=1e-5)
    assert seen == [2, 2, 2, 1]
    seen.clear()
    monkeypatch.setattr(micro_batches, "TOKENS", 7)  # not even one text fits
    assert torch.allclose(answer(model).logits, whole, atol=1e-5)
    assert seen == [1] * 7


def test_who_looks_inside_sees_whole_batches(model, monkeypatch):
    monkeypatch.setattr(micro_batches, "TOKENS", 45)
    seen = rows_seen(monkeypatch, model)
    model.set_attn_implementation("eager")
    found = answer(model, output_attentions=True, output_hidden_states=True)
    maps = found.attentions if "attentions" in found else found.encoder_attentions
    assert [len(one) for one in maps] == [7, 7]
    assert set(seen) == {7}


def test_gradients_keep_the_batch_whole(model, monkeypatch):
    monkeypatch.setattr(micro_batches, "TOKENS", 45)
    seen = rows_seen(monkeypatch, model)
    model(input_ids=IDS, attention_mask=MASK)
    assert seen == [7]


def test_layers_that_give_more_than_states_are_asked_for_all_at_once():
    layer = torch.nn.Linear(4, 4)
    portions = micro_batches.Portions(layer.eval(), lambda x: (layer(x), None))
    x = torch.randn(600, 2, 4)
    with torch.no_grad():
        assert torch.equal(portions(x)[0], layer(x))


def test_what_comes_in_pairs_by_text_is_split():
    """Cosines and sines of each text, as some layers are given them."""
    layer, seen = torch.nn.Identity().eval(), []

    def forward(x, pair):
        seen.append(len(pair[0]))
        return x + pair[0] * pair[1]

    x, pair = torch.randn(600, 2, 4), (torch.randn(600, 2, 4), torch.randn(1, 2, 4))
    with torch.no_grad():
        made = micro_batches.Portions(layer, forward)(x, pair)
    assert seen == [256, 256, 88]
    assert torch.equal(made, x + pair[0] * pair[1])

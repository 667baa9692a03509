"""Decoders that label texts: GPT-2 and LLaMA with a head for labels instead of one for tokens."""

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.families.kinds import LabelSet
from abridged.methods.quantization.method import Quantize
from abridged.models.load import load_dense

PAD = 0
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128, "num_labels": 3}
INNER = {"intermediate_size": 44, "num_key_value_heads": 2, "max_position_embeddings": 24}


def build(family):
    torch.manual_seed(0)
    if family == "gpt2":
        made = GPT2ForSequenceClassification(GPT2Config(**SIZES, n_positions=24, pad_token_id=PAD))
    else:
        made = LlamaForSequenceClassification(LlamaConfig(**SIZES, **INNER, pad_token_id=PAD))
    return made.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_but_the_head_is_described(family):
    model = build(family)
    view = families.view(model)
    assert view.readers == ["score"]
    assert not any(matrix.tied for matrix in view.matrices)
    named = {f"{matrix.name}.weight" for matrix in view.matrices} | {f"{p}.weight" for p in view.positions}
    assert named == {name for name, p in model.named_parameters() if p.ndim == 2} - {"score.weight"}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_packed_it_answers_as_in_training_also_over_padding(family, tmp_path):
    model, ids = build(family), torch.randint(1, 128, (4, 12))
    ids[0, 7:] = PAD
    method = Quantize.model_validate({"activations": {"bits": 8, "attention": True}})
    attached = method.build(model, families.view(model), lambda model: model(ids))
    attached.finish()
    expected = model.eval()(ids, attention_mask=(ids != PAD).long()).logits
    save_checkpoint(model, tmp_path / "small", None, {"recipe": {"name": "test"}, "teacher": family, "seed": 0})
    for loaded in (load(tmp_path / "small"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "small")):
        assert type(loaded) is type(model)
        found = loaded(ids, attention_mask=(ids != PAD).long()).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(loaded(ids[:1, :7]).logits, found[:1], rtol=1e-3, atol=1e-3)


def test_texts_are_padded_with_the_first_of_several_ends(tmp_path):
    sizes = {key: value for key, value in SIZES.items() if key != "num_labels"}
    LlamaForCausalLM(LlamaConfig(**sizes, **INNER, eos_token_id=[3, 5])).save_pretrained(tmp_path)
    model = load_dense(tmp_path, LabelSet(("bad", "good")))
    assert type(model) is LlamaForSequenceClassification
    assert model.config.pad_token_id == 3

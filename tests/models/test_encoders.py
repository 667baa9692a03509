"""Any encoder can be given a head for labels; what has no head is loaded as the body that it is."""

import json

import pytest
import transformers
from safetensors.torch import load_file, save_file

import tiny
from abridged.core.errors import AbridgedError
from abridged.families.kinds import NO_END, LabelSet, context_of, is_encoder
from abridged.models.load import auto_class, load_dense

ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "electra", "mpnet", "albert", "deberta-v2")
LABELS = LabelSet(("bad", "good"))


def masked(name):
    """A tiny model of that type with a head for masks, as most encoders come."""
    return transformers.AutoModelForMaskedLM.from_config(tiny.TINY[name]()[1])


def test_what_reads_and_does_not_write():
    others = ("gpt2", "llama", "qwen3", "bart", "t5", "vit")
    assert {name for name in (*ENCODERS, *others) if is_encoder(tiny.TINY[name]()[1])} == set(ENCODERS)
    writer = tiny.TINY["bert"]()[1]
    writer.architectures = ["BertLMHeadModel"]
    assert not is_encoder(writer)
    assert auto_class(writer) is transformers.AutoModelForCausalLM


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_given_labels(name, tmp_path):
    masked(name).save_pretrained(tmp_path)
    model = load_dense(tmp_path, LABELS)
    assert type(model).__name__.endswith("ForSequenceClassification")
    assert list(model.config.label2id) == ["bad", "good"]


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_so_are_models_that_write(name, tmp_path):
    kind, config = tiny.TINY[name]()
    kind(config).save_pretrained(tmp_path)
    assert type(load_dense(tmp_path, LABELS)).__name__.endswith("ForSequenceClassification")


@pytest.mark.parametrize("name", ["bert-masked", "bert-bare"])
def test_a_new_head_hides_no_weight_that_the_body_lacks(name, tmp_path):
    tiny.build(name).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in tensors if key.endswith("encoder.layer.1.output.dense.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AbridgedError, match=r"lacks the weights of bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_dense(tmp_path, LABELS)


@pytest.mark.parametrize("name", ["bert-bare", "roberta-bare", "mpnet-bare"])
def test_a_body_without_a_head_is_loaded_as_one(name, tmp_path):
    model = tiny.build(name)
    model.save_pretrained(tmp_path)
    loaded = load_dense(tmp_path)
    assert type(loaded) is type(model)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_the_context_is_what_positions_leave_for_tokens():
    contexts = {name: context_of(tiny.TINY[name]()[1]) for name in ("gpt2", "bert", "roberta", "mpnet", "t5", "bloom")}
    all_of_them, less = tiny.CONTEXT, tiny.CONTEXT - 2
    expected = {"gpt2": all_of_them, "bert": all_of_them, "roberta": less, "mpnet": less, "t5": NO_END, "bloom": NO_END}
    assert contexts == expected
    told = tiny.TINY["t5"]()[1]
    told.n_positions = 512  # what they were trained with, and nothing in them is bound to
    assert context_of(told) == NO_END

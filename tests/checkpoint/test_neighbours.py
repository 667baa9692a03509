"""Packed models in the hands of transformers, accelerate and peft: other heads, offloading, resizing, prompts."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.quantization.method import Quantize
from abridged.runtime.modules import PackedLinear
from students import IDS, quantized_student
from tiny import build, inputs


def compressed(name, directory, *methods):
    model = build(name)
    for method in (*methods, Quantize.model_validate({"activations": {"bits": None}})):
        method.build(model, families.view(model), lambda model: None).finish()
    save_checkpoint(model, directory, None, {})
    return directory


OTHER_HEADS = {
    "gpt2 to labels": ("gpt2", (), AutoModelForSequenceClassification),
    "gpt2 in factors to labels": ("gpt2", (Kronecker(),), AutoModelForSequenceClassification),
    "llama to labels of tokens": ("llama", (), AutoModelForTokenClassification),
    "bert from labels to words": ("bert", (), AutoModelForMaskedLM),
    "bert's body to labels": ("bert-bare", (), AutoModelForSequenceClassification),
    "bart to labels": ("bart", (), AutoModelForSequenceClassification),
    "t5 to labels": ("t5", (), AutoModelForSequenceClassification),
}


@torch.no_grad()
@pytest.mark.parametrize("case", OTHER_HEADS)
def test_the_same_body_under_another_head(case, tmp_path):
    name, methods, auto = OTHER_HEADS[case]
    directory = compressed(name, tmp_path / "first", *methods)
    other = auto.from_pretrained(directory, **({} if auto is AutoModelForMaskedLM else {"num_labels": 5}))
    ids = inputs(other)["input_ids"]
    body = AutoModel.from_pretrained(directory)
    given = inputs(body)
    assert torch.equal(other.base_model(**given)[0], body(**given)[0])
    packed = {path.removeprefix(f"{other.base_model_prefix}.") for path in packed_modules(other)}
    assert len(packed & set(packed_modules(body))) > 8
    assert (auto is AutoModelForMaskedLM) == isinstance(other.get_output_embeddings(), PackedLinear)
    other.save_pretrained(tmp_path / "second")
    again = load(tmp_path / "second")
    assert type(again) is type(other)
    assert torch.equal(again(ids)[0], other(ids)[0])


@torch.no_grad()
def test_a_head_of_another_size_is_a_new_one(tmp_path):
    directory = compressed("bert", tmp_path / "first")
    other = AutoModelForTokenClassification.from_pretrained(directory, num_labels=5, ignore_mismatched_sizes=True)
    assert other(inputs(other)["input_ids"])[0].shape[-1] == 5


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_a_tied_model_is_offloaded(name, tmp_path):
    directory = compressed(name, tmp_path / "first")
    expected = load(directory)(IDS).logits
    for share in (6000, 12000):
        memory = {"device_map": "auto", "max_memory": {"cpu": share}}
        model = load(directory, **memory, offload_folder=tmp_path / "off")
        assert "disk" in model.hf_device_map.values()
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


def test_factors_are_not_offloaded(tmp_path):
    memory = {"device_map": "auto", "max_memory": {"cpu": 6000}, "offload_folder": tmp_path / "off"}
    with pytest.raises(AbridgedError, match="is stored in factors, which cannot stay on the disk: give it more memory"):
        load(compressed("gpt2", tmp_path / "first", Kronecker()), **memory)


@pytest.mark.parametrize(("wte", "head"), [("disk", "cpu"), ("cpu", "disk")])
def test_a_shared_weight_is_not_left_on_the_disk_for_one_reader(wte, head, saved, tmp_path):
    places = {"transformer": "cpu", "transformer.wte": wte, "lm_head": head}
    with pytest.raises(AbridgedError, match="lm_head has the weight of transformer.wte: device_map must leave both"):
        load(saved, device_map=places, offload_folder=tmp_path)


@pytest.mark.parametrize("factored", [False, True])
def test_the_vocabulary_stays(factored, saved, tmp_path):
    model = load(compressed("gpt2", tmp_path / "first", Kronecker()) if factored else saved)
    embedding = model.get_input_embeddings()
    for same in (
        {},
        {"new_num_tokens": 128},
        {"pad_to_multiple_of": 64},
        {"new_num_tokens": 100, "pad_to_multiple_of": 64},
    ):
        assert model.resize_token_embeddings(**same) is embedding
    with pytest.raises(AbridgedError, match="keeps its 128 tokens: resize it to 140 before compressing it"):
        model.resize_token_embeddings(140)
    with pytest.raises(AbridgedError, match="keeps its 128 tokens"):
        pack_model(quantized_student()).resize_token_embeddings(129)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("factored", [False, True])
def test_prompts_are_tuned(method, factored, saved, tmp_path):
    peft = pytest.importorskip("peft")
    model = load(compressed("gpt2", tmp_path / "first", Kronecker()) if factored else saved)
    kind = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}[method]
    tuned = peft.get_peft_model(model, kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    found = {name: p.grad.abs().sum() for name, p in tuned.named_parameters() if p.requires_grad}
    assert list(found) == ["prompt_encoder.default.embedding.weight"]
    assert all(gradient > 0 for gradient in found.values())
    assert tuned.generate(input_ids=IDS[:1, :5], max_new_tokens=3, min_new_tokens=3, pad_token_id=0).shape == (1, 8)

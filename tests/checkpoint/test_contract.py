"""Packed modules keep the contract of the stock ones that they replace, in models whose code asks for it."""

import copy
import pickle

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.errors import AbridgedError
from abridged.methods.quantization.method import Quantize
from abridged.runtime.kernels import kernels
from abridged.runtime.weight import PackedWeight
from students import IDS, quantized_student

T5 = {
    "relu, tied": {"feed_forward_proj": "relu"},
    "gated, untied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},  # as mT5 and T5 1.1
}
TEXT = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))


def t5(settings, activations):
    """A tiny T5, quantised to 2 bits."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**sizes, **settings, decoder_start_token_id=0)).eval()
    method = Quantize.model_validate({"activations": {"bits": 8, **activations}})
    method.build(model, families.view(model), answer).finish()
    return model.eval()


@torch.no_grad()
def answer(model):
    return model(input_ids=TEXT, decoder_input_ids=TEXT[:, :7]).logits


@pytest.fixture(scope="module", params=T5, ids=str)
def student(request):
    return t5(T5[request.param], {})


@pytest.mark.parametrize(
    "activations", [{}, {"quantizer": "dynamic"}, {"attention": True}], ids=["static", "by token", "in attention"]
)
@pytest.mark.parametrize("settings", T5.values(), ids=T5)
def test_t5_is_its_student_to_the_bit(settings, activations, tmp_path):
    student = t5(settings, activations)
    expected = answer(student)
    packed = pack_model(student)
    assert torch.equal(answer(packed), expected)
    packed.save_pretrained(tmp_path)
    for loaded in (load(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        assert torch.equal(answer(loaded), expected)


@pytest.mark.skipif(kernels() is None, reason="there is nothing but the reference")
@pytest.mark.parametrize("settings", T5.values(), ids=T5)
def test_every_layer_of_t5_on_the_kernels_is_the_references(settings, monkeypatch):
    """Layer by layer, on the same inputs. Through all of them, where one value is rounded to the next of 256 levels, T5
    differs by 0.04 of its logits' deviation, and the reference by as much from itself when its input moves in the last
    bit."""
    packed = pack_model(t5(settings, {"quantizer": "dynamic"}))
    differences = []

    def compare(module, inputs, y):
        reference = torch.nn.functional.linear(module.rounding().apply(inputs[0]), module.dequantized(), module.bias)
        differences.append(float((y - reference).abs().max() / reference.std()))

    for module in packed_modules(packed).values():
        if hasattr(module, "rounding"):
            module.register_forward_hook(compare)
    monkeypatch.setattr("abridged.runtime.kernels.kernels", kernels)
    answer(packed)
    assert len(differences) > 20
    assert max(differences) < 1e-5


def test_a_weight_is_what_a_stock_layers_is(student):
    packed = pack_model(student)
    stock = type(student)(student.config)
    for path, module in packed_modules(packed).items():
        was, weight = stock.get_submodule(path), module.weight
        assert isinstance(weight, torch.Tensor)
        assert (weight.shape, weight.dtype, weight.device) == (was.weight.shape, was.weight.dtype, was.weight.device)
        for dense in (weight.float(), weight.data, weight.detach(), weight[:], copy.deepcopy(weight)):
            assert torch.equal(dense, module.dequantized())
        assert torch.equal(weight.T @ weight, module.dequantized().T @ module.dequantized())
        assert weight.tolist() == weight.numpy().tolist()
        names = ("in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx")
        for name in names:
            assert getattr(module, name, None) == getattr(was, name, None)
        trained = student.get_submodule(path)
        assert trained.weight.shape == was.weight.shape
        for name in names:
            assert getattr(trained, name, None) == getattr(was, name, None)


def test_its_type_costs_no_dequantisation(student, monkeypatch):
    packed = pack_model(student)
    wo = packed.encoder.block[0].layer[1].DenseReluDense.wo
    monkeypatch.setattr(PackedWeight, "dequantize", None)
    assert wo.weight.dtype == torch.float32
    assert answer(packed).isfinite().all()
    assert wo.half().weight.dtype == torch.float16
    with pytest.raises(TypeError):
        wo.weight.float()


def test_writing_into_a_packed_weight_is_refused(student):
    packed = pack_model(student)
    with pytest.raises(AbridgedError, match="cannot be written"):
        packed.shared.weight.zero_()
    packed.init_weights()  # which leaves it alone
    assert torch.equal(packed.shared.weight, pack_model(student).shared.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_half_precision(student, tmp_path, dtype):
    """In FP16 transformers keeps T5's `wo` in FP32, whose input and output are then of that type."""
    pack_model(student).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype)
    for path, module in packed_modules(model).items():
        kept = path.endswith(".wo") and dtype == torch.float16
        assert module.weight.dtype == (torch.float32 if kept else dtype), path
        assert module.scales.dtype == torch.float32
    y = answer(model)
    assert (y.float() - answer(student)).abs().max() < 0.35 * answer(student).std()
    cast = pack_model(student).to(dtype)
    assert {module.weight.dtype for module in packed_modules(cast).values()} == {dtype}
    assert {module.scales.dtype for module in packed_modules(cast).values()} == {torch.float32}


def test_copies_and_pickles_answer_the_same(student):
    packed = pack_model(student)
    expected = answer(packed)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(answer(other), expected)
    other = copy.deepcopy(packed)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(answer(other), expected)
    codes = packed_modules(packed)["encoder.block.0.layer.0.SelfAttention.q"].codes
    codes.data = codes.data.flip(0)  # what was prepared of them is no longer good
    assert not torch.equal(answer(packed), expected)
    assert torch.equal(answer(other), expected)


def test_a_type_whose_published_names_are_others_is_pushed_as_it_is_saved(tmp_path):
    """transformers would write GPT-NeoX's tensors by the names of the published files, which the digest has not."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=128, **sizes)).eval()
    method = Quantize.model_validate({})
    method.build(model, families.view(model), lambda model: model(IDS)).finish()
    packed = pack_model(model.eval())
    packed.save_pretrained(tmp_path / "once")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    loaded.save_pretrained(tmp_path / "twice")
    again = load(tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_tying_again_changes_nothing():
    packed = pack_model(quantized_student())
    with torch.no_grad():
        expected = packed(IDS).logits
        packed.tie_weights()
        assert packed.lm_head.codes is packed.transformer.wte.codes
        assert torch.equal(packed(IDS).logits, expected)

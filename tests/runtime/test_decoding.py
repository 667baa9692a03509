"""Steps of one token give what the stock modules give, and leave to those what they cannot do."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.methods.quantization.method import Quantize
from abridged.runtime import kernels as module
from abridged.runtime.decoding import Forward
from abridged.runtime.decoding.steps import Steps
from families.test_llama import build
from students import IDS, quantized_student

pytestmark = pytest.mark.skipif(module.kernels() is None, reason="the kernels were not compiled, or are not asked for")
PLAIN = {"activations": {"bits": 8, "attention": False}}
CASES = {
    "gpt2": {},
    "gpt2, quantised attention": {"attention": True},
    "gpt2, activations per token": {"quantizer": "dynamic"},
    "gpt2, activations in full": {"bits": None},
    "llama": {},
    "llama, tied": {},
    "mistral": {"quantizer": "dynamic"},
    "qwen2": {},
}


def make(case, directory):
    activations = {"bits": 8, "attention": False, **CASES[case]}
    family, _, variant = case.partition(", ")
    if family == "gpt2":
        model = quantized_student(activations=activations)
    else:
        model = build(family, tie_word_embeddings=variant == "tied")
        method = Quantize.model_validate({"activations": activations})
        attached = method.build(model, families.view(model), lambda model: model(IDS))
        attached.finish()
    save_checkpoint(model.eval(), directory / "small", None, {"recipe": {"name": "test"}, "teacher": "t", "seed": 0})
    return load(directory / "small")


@pytest.fixture
def gpt2(tmp_path):
    return make("gpt2", tmp_path)


class Counting:
    """How many steps a model took in the short way."""

    def __init__(self, monkeypatch):
        self.steps = 0
        original = Steps.__call__

        def counted(steps, *given):
            self.steps += 1
            return original(steps, *given)

        monkeypatch.setattr(Steps, "__call__", counted)


def stock(model):
    """The same model without the short way."""
    other = copy.deepcopy(model)
    del other.forward
    return other


@torch.no_grad()
def steps(model, ids, count, **more):
    """Logits of `count` steps after a prompt, always with the first token next."""
    out = model(input_ids=ids, use_cache=True)
    logits = []
    for i in range(count):
        mask = torch.ones(len(ids), ids.shape[1] + i + 1, dtype=torch.long)
        out = model(
            input_ids=ids[:, :1], past_key_values=out.past_key_values, attention_mask=mask, use_cache=True, **more
        )
        logits.append(out.logits)
    return torch.cat(logits, dim=1), out.past_key_values


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 2])
def test_logits_and_cache_are_those_of_the_stock_modules(case, batch, tmp_path, monkeypatch):
    model = make(case, tmp_path)
    counting = Counting(monkeypatch)
    ids = IDS[:batch, :5]
    ours, cache = steps(model, ids, 6)
    assert counting.steps == 6
    theirs, expected = steps(stock(model), ids, 6)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert cache.get_seq_length() == 11
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert torch.allclose(layer.keys, other.keys, atol=1e-5)
        assert torch.allclose(layer.values, other.values, atol=1e-5)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_generate_writes_the_same(search, gpt2, monkeypatch):
    counting = Counting(monkeypatch)
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0, "do_sample": False, **search}
    torch.manual_seed(0)
    ours = gpt2.generate(IDS[:1, :5], **settings)
    assert counting.steps >= 11
    torch.manual_seed(0)
    assert torch.equal(ours, stock(gpt2).generate(IDS[:1, :5], **settings))


def test_padding_goes_the_stock_way(gpt2, monkeypatch):
    counting = Counting(monkeypatch)
    ids, mask = IDS[:, :6].clone(), torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ours = gpt2.generate(ids, **settings)
    assert counting.steps == 0
    assert torch.equal(ours, stock(gpt2).generate(ids, **settings))


@torch.no_grad()
def test_both_ways_may_take_turns_over_one_cache(gpt2):
    expected, _ = steps(stock(gpt2), IDS[:1, :5], 4)
    out = gpt2(input_ids=IDS[:1, :5], use_cache=True)
    logits = []
    for i in range(4):
        forward = gpt2.forward if i % 2 else lambda **given: type(gpt2).forward(gpt2, **given)
        out = forward(input_ids=IDS[:1, :1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    assert torch.allclose(torch.cat(logits, dim=1), expected, atol=1e-5)


@torch.no_grad()
def test_a_cropped_cache_goes_on_from_where_it_was_cut(gpt2):
    ours, cache = steps(gpt2, IDS[:1, :5], 4)
    cache.crop(-2)
    again = gpt2(input_ids=IDS[:1, :1], past_key_values=cache, use_cache=True).logits
    assert torch.allclose(again, ours[:, 2:3], atol=1e-5)


@torch.no_grad()
def test_a_copied_cache_goes_its_own_way(gpt2):
    out = gpt2(input_ids=IDS[:1, :5], use_cache=True)
    out = gpt2(input_ids=IDS[:1, :1], past_key_values=out.past_key_values, use_cache=True)
    other = copy.deepcopy(out.past_key_values)
    first = gpt2(input_ids=IDS[:1, 3:4], past_key_values=out.past_key_values, use_cache=True).past_key_values
    second = gpt2(input_ids=IDS[:1, 4:5], past_key_values=other, use_cache=True).past_key_values
    assert not torch.equal(first.layers[0].keys[:, :, -1], second.layers[0].keys[:, :, -1])
    assert torch.equal(first.layers[0].keys[:, :, :-1], second.layers[0].keys[:, :, :-1])


def test_hooks_and_replaced_modules_are_seen(gpt2, monkeypatch):
    steps(gpt2, IDS[:1, :5], 1)
    counting = Counting(monkeypatch)
    seen = []
    handle = gpt2.transformer.h[0].mlp.register_forward_hook(lambda *_: seen.append(1))
    assert gpt2.forward.prepared().intact() is False
    handle.remove()

    class Doubled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    before, _ = steps(gpt2, IDS[:1, :5], 2)
    gpt2.transformer.h[1].mlp.c_proj = Doubled(gpt2.transformer.h[1].mlp.c_proj)
    after, _ = steps(gpt2, IDS[:1, :5], 2)
    assert counting.steps == 4
    assert not torch.allclose(before, after)
    assert torch.allclose(after, steps(stock(gpt2), IDS[:1, :5], 2)[0], atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "gpt2, quantised attention", "gpt2, activations in full", "llama"])
def test_in_bf16_the_short_way_is_no_less_exact(case, tmp_path, monkeypatch):
    model = make(case, tmp_path)
    exact, _ = steps(stock(model), IDS[:1, :5], 6)
    model.to(torch.bfloat16)
    counting = Counting(monkeypatch)
    ours, cache = steps(model, IDS[:1, :5], 6)
    assert counting.steps == 6
    assert ours.dtype == cache.layers[0].keys.dtype == torch.bfloat16
    theirs, _ = steps(stock(model), IDS[:1, :5], 6)
    assert (ours - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


def test_other_types_go_the_stock_way(gpt2, monkeypatch):
    gpt2.to(torch.float64)
    counting = Counting(monkeypatch)
    steps(gpt2, IDS[:1, :5], 2)
    assert counting.steps == 0


def test_gradients_and_hidden_states_go_the_stock_way(gpt2, monkeypatch):
    counting = Counting(monkeypatch)
    cache = gpt2(input_ids=IDS[:1, :5], use_cache=True).past_key_values
    gpt2(input_ids=IDS[:1, :1], past_key_values=cache, use_cache=True)
    with torch.no_grad():
        out = gpt2(input_ids=IDS[:1, :1], past_key_values=cache, use_cache=True, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert counting.steps == 0


def test_the_signature_is_the_stock_one(gpt2):
    assert isinstance(gpt2.forward, Forward)
    assert inspect.signature(gpt2.forward) == inspect.signature(stock(gpt2).forward)


def test_without_kernels_nothing_is_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = make("gpt2", tmp_path)
    assert "forward" not in vars(model)
    assert type(model.transformer.h[0].mlp.act).__name__ == "NewGELUActivation"


@pytest.mark.parametrize(("bits", "dtype", "apart"), [(16, torch.bfloat16, 0.01), (8, torch.int8, 0.02)])
def test_a_narrow_cache_costs_little(bits, dtype, apart, gpt2):
    exact, _ = steps(gpt2, IDS[:1, :5], 6)
    out = gpt2(input_ids=IDS[:1, :5], use_cache=True)
    assert gpt2.forward.narrow(out.past_key_values, bits) == bits
    logits = []
    with torch.no_grad():
        for _ in range(6):
            out = gpt2(input_ids=IDS[:1, :1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
    assert out.past_key_values.layers[0].keys.dtype == dtype
    assert out.logits.dtype == torch.float32
    assert (torch.cat(logits, dim=1) - exact).abs().mean() < apart * exact.std()


LONG = torch.zeros(1, 33, dtype=torch.long)
BEYOND = {
    "text": lambda model: model(LONG),
    "step": lambda model: model(
        input_ids=LONG[:, :1], past_key_values=model(LONG[:, :32], use_cache=True).past_key_values, use_cache=True
    ),
    "generate": lambda model: model.generate(LONG[:, :30], max_new_tokens=9, min_new_tokens=9, pad_token_id=0),
}


@torch.no_grad()
@pytest.mark.parametrize("call", BEYOND.values(), ids=BEYOND)
def test_beyond_the_positions_there_is_a_sentence(call, gpt2):
    with pytest.raises(AbridgedError, match="the text has 33 tokens, and the model's positions end after 32"):
        call(gpt2)


def test_beyond_the_vocabulary_there_is_a_sentence(gpt2):
    with pytest.raises(AbridgedError, match="token 128 is none of the 128 of the model's vocabulary"):
        gpt2(torch.tensor([[5, 128]]))


@pytest.mark.parametrize("way", ["copy", "pickle", "torch.save"])
def test_a_copy_takes_its_own_steps(way, gpt2, monkeypatch):
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = gpt2.generate(IDS[:1, :5], **settings)  # its steps are made
    if way == "copy":
        other = copy.deepcopy(gpt2)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(gpt2))
    else:
        torch.save(gpt2, stored := io.BytesIO())
        stored.seek(0)
        other = torch.load(stored, weights_only=False)
    for parameter in gpt2.parameters():
        parameter.data.zero_()
    counting = Counting(monkeypatch)
    assert torch.equal(other.generate(IDS[:1, :5], **settings), expected)
    assert counting.steps == 5
    assert other.forward.model is other


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_export_takes_the_model_itself(strict, gpt2):
    length = {1: torch.export.Dim("length", min=2, max=32)}
    given = {"input_ids": IDS, "use_cache": False}
    shapes = {"input_ids": length, "use_cache": None}
    program = torch.export.export(gpt2, (), given, dynamic_shapes=shapes, strict=strict)
    short = gpt2(IDS[:, :9], use_cache=False).logits
    assert torch.allclose(program.module()(input_ids=IDS[:, :9], use_cache=False).logits, short, atol=1e-4)

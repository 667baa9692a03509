"""One description of a step serves decoders of many types: its logits are those of a pass over the whole text."""

import copy
import dataclasses
import pickle

import pytest
import torch
from transformers.cache_utils import DynamicCache

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.methods.quantization.method import Quantize
from abridged.runtime import kernels as module
from abridged.runtime.decoding import prepared
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.decoding.prepared import Prepared
from decoders import DECODERS, FAST, decoder
from tiny import build

ALL = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS]
IDS = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
PROMPT = 4


@torch.no_grad()
def stepped(model, steps, ids, cache=None):
    """Logits (B, T - PROMPT, vocabulary) of the tokens after the prompt, one by one; and the cache."""
    cache = model(input_ids=ids[:, :PROMPT], use_cache=True, past_key_values=cache).past_key_values
    assert Appending.fits(cache, steps.windows)
    logits = [steps(ids[:, i : i + 1], cache).logits for i in range(PROMPT, ids.shape[1])]
    return torch.cat(logits, dim=1), cache


@torch.no_grad()
def whole(model, ids):
    return model(input_ids=ids).logits[:, PROMPT:]


def packed(model, bits):
    settings = {"activations": {"bits": bits, "quantizer": "dynamic", "attention": False}}
    method = Quantize.model_validate(settings)
    method.build(model, families.view(model), lambda model: model(IDS)).finish()
    return pack_model(model)


@pytest.mark.parametrize("name", ALL)
def test_steps_are_a_pass_over_the_whole(name):
    model = decoder(name)
    found = Prepared(model)
    assert found.reason is None
    ours, cache = stepped(model, found.steps, IDS)
    assert torch.allclose(ours, whole(model, IDS), atol=1e-5)
    expected = model(input_ids=IDS, use_cache=True).past_key_values
    assert cache.get_seq_length() == IDS.shape[1]
    for layer, other in zip(cache.layers, expected.layers, strict=True):  # a window keeps what the next token sees
        assert torch.allclose(layer.keys, other.keys, atol=1e-5)
        assert torch.allclose(layer.values, other.values, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_packed_steps_are_a_pass_over_the_whole_on_the_reference(name, monkeypatch):
    monkeypatch.setattr("abridged.runtime.kernels.kernels", lambda: None)
    model = packed(decoder(name), None)
    found = Prepared(model)
    assert found.reason is None
    assert torch.allclose(stepped(model, found.steps, IDS)[0], whole(model, IDS), atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.skipif(module.kernels() is None, reason="the kernels were not compiled, or are not asked for")
def test_packed_steps_are_a_pass_over_the_whole_on_the_kernels(name):
    model = packed(decoder(name), 8)
    found = Prepared(model)
    assert found.reason is None
    apart = (stepped(model, found.steps, IDS)[0] - whole(model, IDS)).abs().amax(-1)
    assert (found.steps.compiled_for(len(IDS), []) is not None) == ("gemma2" not in name)  # whose attention has a cap
    # an activation in the middle between two levels may fall on either, and all tokens after it see that
    assert apart.quantile(0.3) < 1e-5
    assert apart.max() < 0.02


def test_a_window_over_a_cache_that_keeps_all():
    """A cache that was made without the config keeps every token, of which a step sees as many as the mask lets it."""
    model = decoder("mistral")
    ours, cache = stepped(model, Prepared(model).steps, IDS, DynamicCache())
    assert torch.allclose(ours, whole(model, IDS), atol=1e-5)
    assert cache.layers[0].keys.shape[2] == IDS.shape[1]


def test_a_copied_cache_with_windows_goes_its_own_way():
    model = decoder("mistral")
    steps = Prepared(model).steps
    ours, cache = stepped(model, steps, IDS[:, :-1])
    other = copy.deepcopy(cache)
    with torch.no_grad():
        steps(IDS[:, :1], other)
        last = steps(IDS[:, -1:], cache).logits
    assert torch.allclose(last[:, 0], whole(model, IDS)[:, -1], atol=1e-5)


BRANCHES = ("layers", "tensors", "deepcopy", "pickle", "beams")


@pytest.mark.parametrize(
    ("name", "branch"),
    [("gpt2", "crop"), *((n, b) for n in ("gpt2", "mistral", "gemma2, caps that matter") for b in BRANCHES)],
)
def test_a_kept_branch_of_the_cache_stays_what_it_was(name, branch):
    """A text goes on from one place, is kept, goes on from there in another way, and the first is returned to."""
    model, place = decoder(name), 9
    steps = Prepared(model).steps
    _, cache = stepped(model, steps, IDS[:, :place])
    before = [(layer.keys, layer.values) for layer in cache.layers]
    first = copy.copy(cache)
    if branch == "deepcopy":
        first = copy.deepcopy(cache)
    elif branch == "pickle":
        first = pickle.loads(pickle.dumps(cache))
    elif branch != "crop":
        first.layers = [copy.copy(layer) for layer in cache.layers]
    if branch == "beams":
        first.reorder_cache(torch.tensor([1, 0]))
    if branch == "tensors":
        for layer, tensors in zip(first.layers, before, strict=True):
            layer.keys, layer.values = tensors
    ids = torch.cat([IDS[[1, 0] if branch == "beams" else [0, 1], :place], IDS[:, :8]], 1)

    def go_on(cache, ids, start, end):
        return torch.cat([steps(ids[:, i : i + 1], cache).logits for i in range(start, end)], 1)

    with torch.no_grad():
        begun = go_on(first, ids, place, place + 4)
        kept = [(layer.keys, layer.values) for layer in first.layers]
        values = copy.deepcopy(kept)
        if branch == "crop":
            first = copy.copy(cache)
            first.layers = [copy.copy(layer) for layer in cache.layers]
            cache.crop(-4)
        other = go_on(cache, IDS, place, IDS.shape[1])
        returned = go_on(first, ids, place + 4, place + 8)
        assert torch.allclose(torch.cat([begun, returned], 1), model(input_ids=ids).logits[:, place:], atol=1e-5)
        assert torch.allclose(other, model(input_ids=IDS).logits[:, place:], atol=1e-5)
    for now, then in zip(kept, values, strict=True):
        assert all(map(torch.equal, now, then))


def test_buffers_are_filled_and_made_anew(monkeypatch):
    monkeypatch.setattr("abridged.runtime.decoding.cache.ROOM", 3)
    for name in ("gpt2", "mistral"):
        model = decoder(name)
        assert torch.allclose(stepped(model, Prepared(model).steps, IDS)[0], whole(model, IDS), atol=1e-5)


def test_a_step_that_differs_from_the_models_own_stays_out(monkeypatch):
    right = prepared.describe
    monkeypatch.setattr(prepared, "describe", lambda model: dataclasses.replace(right(model), logits_multiplier=1.1))
    found = Prepared(decoder("llama-3"))
    assert found.steps is None
    assert "of a standard deviation off transformers' own" in found.reason


@pytest.mark.parametrize("name", ["bloom", "gptj"])
def test_what_cannot_be_described_says_why(name):
    found = Prepared(build(name))
    assert found.steps is None
    assert found.reason == "its attention is not transformers' interface"


def test_the_number_of_threads_is_part_of_what_must_stay():
    """The kernels' calls hold how many threads they take."""
    model = decoder("gpt2")
    found = Prepared(model)
    before = torch.get_num_threads()
    assert found.intact()
    try:
        torch.set_num_threads(before + 1)
        assert not found.intact()
    finally:
        torch.set_num_threads(before)
    assert found.intact()


def test_the_model_is_left_as_it_was():
    model = decoder("gemma2, caps that matter")
    implementation = model.config._attn_implementation
    Prepared(model)
    assert model.config._attn_implementation == implementation
    assert not any(m._forward_hooks for m in model.modules())

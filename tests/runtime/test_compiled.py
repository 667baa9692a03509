"""A step as one call into the library: what its instructions compute, and that it is that of a call for each matrix."""

import threading

import pytest
import torch
import torch.nn.functional as F

from abridged.runtime import kernels as module
from abridged.runtime.decoding import install, parts
from abridged.runtime.decoding.cache import in_8_bits
from abridged.runtime.decoding.compiled import MOST
from abridged.runtime.decoding.prepared import Prepared
from abridged.runtime.decoding.spec import Rotary
from abridged.runtime.program import ACTIVATIONS, Place, Program
from decoders import decoder
from runtime.test_steps import packed

pytestmark = pytest.mark.skipif(module.kernels() is None, reason="the kernels were not compiled, or are not asked for")


@pytest.fixture
def program():
    return Program(module.kernels(), 2)


# ---- instructions


@pytest.mark.parametrize("function", ACTIVATIONS)
@pytest.mark.parametrize("step", [1, 2])
def test_activations_of_parts(function, step, program):
    made = torch.randn(2, 75) * 3
    y, expected = torch.empty(2, 37), parts.ACTIVATIONS[function](made[:, 0 : 37 * step : step])
    program.activate(made, made[:, 1:], y, function, (step, 1))
    program.run()
    assert torch.allclose(y, expected * made[:, 1:38], atol=2e-6)
    program.activate(made, None, y, function, (step, 1))  # the last is what counts
    program.run()
    assert torch.allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("width", [5, 16, 77])
def test_norms_in_parts_and_in_place(centred, width, program):
    x, weight, bias = torch.randn(2, 2 * width) + 1, torch.randn(width), torch.randn(width)
    rows = x.view(4, width)
    expected = (
        F.layer_norm(rows, (width,), weight, bias, 1e-5) if centred else F.rms_norm(rows, (width,), weight, 1e-5) + bias
    )
    program.norm(x, x, weight, bias, 1e-5, centred)
    program.run()
    assert torch.allclose(x, expected.view_as(x), atol=1e-5)


@pytest.mark.parametrize("style", ["half", "pairs"])
@pytest.mark.parametrize("turned", [8, 6])
def test_rotary_positions(style, turned, program):
    x, angles = torch.randn(2, 24), torch.randn(turned // 2)
    rotary = Rotary("", (), style, style == "pairs")
    angles = angles.repeat_interleave(2) if style == "pairs" else angles.repeat(2)
    waves = [wave.clone() for wave in parts.waves(angles.cos(), angles.sin(), rotary)]
    expected = parts.turned(x.view(2, 3, 8), *waves, style).view(2, 24)
    program.turn(x, 8, *waves, style == "pairs")
    program.run()
    assert torch.allclose(x, expected, atol=1e-6)


def test_heads_apart(program):
    made, y = torch.randn(2, 40), torch.empty(2, 12)
    program.heads(made, y, 5, 10, 3, 4)
    program.run()
    assert torch.equal(y, torch.cat([made[:, start : start + 4] for start in (5, 15, 25)], 1))


def attended(program, query, key, value, keys, values):
    """What the query sees of tokens 2 to 6, of which key and value become the last, and no other is touched."""
    y, place, before = torch.empty(2, 32), Place(), (keys.clone(), values.clone())
    place.put(keys[:, :, 2:7], values[:, :, 2:7])
    program.attend(query, key, value, y, place, 8, 0.3)
    program.run()
    for now, old in zip((keys, values), before, strict=True):
        assert torch.equal(now[:, :, :6], old[:, :, :6])
        assert torch.equal(now[:, :, 7:], old[:, :, 7:])
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_appends_to_what_it_sees(dtype, program):
    query, key, value = torch.randn(2, 32), torch.randn(2, 16), torch.randn(2, 16)
    keys, values = (torch.randn(2, 2, 9, 8).to(dtype) for _ in range(2))
    y = attended(program, query, key, value, keys, values)
    for now, new in ((keys, key), (values, value)):
        assert torch.equal(now[:, :, 6], new.view(2, 2, 8).to(dtype))
    seen = [t[:, :, 2:7].float() for t in (keys, values)]
    expected = F.scaled_dot_product_attention(query.view(2, 4, 1, 8), *seen, scale=0.3, enable_gqa=True)
    assert torch.allclose(y, expected.reshape(2, 32), atol=1e-5)


def test_attention_appends_in_8_bits(program):
    query, key, value = torch.randn(2, 32), torch.randn(2, 16), torch.randn(2, 16)
    key[0, 8:] = 0  # a head's key of nothing, and one that is no number
    value[1, 3] = torch.nan
    keys, values = (in_8_bits(torch.randn(2, 2, 9, 8)) for _ in range(2))
    y = attended(program, query, key, value, keys, values)
    for now, new in ((keys, key), (values, value)):
        there = new.view(2, 2, 8).isfinite().all(-1)
        assert torch.equal(now[:, :, 6][there], in_8_bits(new.view(2, 2, 1, 8))[:, :, 0][there])
    expected = module.kernels().attend(query.view(2, 4, 1, 8), keys[:, :, 2:7], values[:, :, 2:7], 0.3).view(2, 32)
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[1].isnan().any()
    assert not y[0].isnan().any()
    assert torch.allclose(y, expected, atol=1e-6, equal_nan=True)


# ---- steps


def ready(name="llama", bits=None):
    model = packed(decoder(name), bits)
    return model, Prepared(model).steps


@torch.no_grad()
def logits_of(model, steps, batch, count=6, kept=None):
    """Of `count` steps after five tokens: (count, B, vocabulary); `kept` makes keys and values what is cached."""
    ids = torch.randint(3, 96, (batch, 5 + count), generator=torch.Generator().manual_seed(batch))
    cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    for layer in cache.layers if kept is not None else ():
        layer.keys, layer.values = kept(layer.keys), kept(layer.values)
    return torch.stack([steps.step(ids[:, 5 + i], cache.layers, 5 + i) for i in range(count)])


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi", "gemma3_text"])
@pytest.mark.parametrize("batch", [1, 3, MOST])
@pytest.mark.parametrize("halved", [False, True])
def test_one_call_is_a_call_for_each_matrix(name, batch, halved, monkeypatch):
    model, steps = ready(name)
    kept = torch.Tensor.bfloat16 if halved else None
    ours = logits_of(model, steps, batch, kept=kept)
    assert steps.compiled_for(batch, []) is not None
    monkeypatch.setattr(steps, "compiled_for", lambda *_: None)
    # in bf16 a key or value between two numbers may become either
    assert torch.allclose(ours, logits_of(model, steps, batch, kept=kept), atol=2e-3 if halved else 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text"])
def test_steps_with_keys_and_values_in_8_bits(name):
    model, steps = ready(name)
    exact, found = logits_of(model, steps, 2, count=8), logits_of(model, steps, 2, count=8, kept=in_8_bits)
    assert 1e-5 < (found - exact).std() / exact.std() < 0.03


def test_a_cache_is_narrowed_where_one_call_reads_it(monkeypatch):
    model = packed(decoder("llama"), None)
    install(model, None)

    def kept(bits):
        cache = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
        found = model.forward.narrow(cache, bits)
        model(input_ids=torch.tensor([[8]]), past_key_values=cache)
        return found, {layer.keys.dtype for layer in cache.layers}

    with torch.inference_mode():
        assert kept(16) == (16, {torch.bfloat16})
        assert kept(8) == (8, {torch.int8})
        monkeypatch.setattr(model.forward.prepared().steps, "compiled_for", lambda *_: None)
        assert kept(8) == (16, {torch.bfloat16})


def test_more_texts_than_it_takes_go_one_by_one():
    model, steps = ready()
    assert logits_of(model, steps, MOST + 1).isfinite().all()
    assert steps.compiled_for(MOST + 1, []) is None


@pytest.mark.parametrize("threads", [1, 3, 16])  # more than there are cores: some come late, or not at all
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    expected = logits_of(*ready(bits=8), 1)
    try:
        torch.set_num_threads(threads)
        model, steps = ready(bits=8)
        assert torch.equal(logits_of(model, steps, 1), expected)
    finally:
        torch.set_num_threads(before)


def test_texts_written_at_once_keep_apart():
    model, steps = ready(bits=8)
    expected = {batch: logits_of(model, steps, batch, 20) for batch in (1, 2)}
    found = {}

    def write(number):
        batch = number % 2 + 1
        found[number] = batch, logits_of(model, steps, batch, 20)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(found) == 6
    assert all(torch.equal(made, expected[batch]) for batch, made in found.values())


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, None])
def test_what_is_no_number_stays_it(bits):
    model, steps = ready(bits=bits)
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    model.get_input_embeddings().scales.data.fill_(torch.nan)
    assert steps.step(ids[:, 0], cache.layers, 5).isnan().all()


def test_what_is_made_anew_of_a_weight_is_made_once(monkeypatch):
    made, original = [], module.Held.of
    monkeypatch.setattr(module.Held, "of", lambda weight: made.append(weight.codes.data_ptr()) or original(weight))
    model, steps = ready()
    logits_of(model, steps, 1)  # a prompt, which goes by the modules themselves
    logits_of(model, steps, 2)  # another list of instructions
    assert len(made) == len(set(made))

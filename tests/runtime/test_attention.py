"""Attention "abridged": equal to eager without quantisers, causal, masked and cached as it should be. On the kernels:
equal to transformers' "sdpa", and used."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from abridged.runtime import kernels as module
from abridged.runtime.activations import DynamicActivation, StaticActivation
from abridged.runtime.attention import ON_KERNELS, QuantizedAttention, attention

AUTO = {"t5": T5ForConditionalGeneration, "gemma2": Gemma2ForCausalLM}


@pytest.fixture(scope="module")
def eager():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()


def quantized(model):
    model = copy.deepcopy(model)
    model.set_attn_implementation("abridged")
    for block in model.transformer.h:
        probabilities = StaticActivation(8, False)
        probabilities.scale.fill_(1 / 255)
        dynamic = (DynamicActivation(8) for _ in range(3))
        block.attn.attention_quantizers = QuantizedAttention(*dynamic, probabilities)
    return model


@pytest.fixture
def ids():
    return torch.randint(1, 128, (2, 10), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_without_quantizers_it_is_eager_attention(eager, ids):
    model = copy.deepcopy(eager)
    model.set_attn_implementation("abridged")
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    for kwargs in ({}, {"attention_mask": mask}):
        a, b = (m(ids, output_attentions=True, **kwargs) for m in (eager, model))
        assert torch.allclose(a.logits, b.logits, atol=1e-6)
        assert torch.allclose(a.attentions[1], b.attentions[1], atol=1e-6)


@torch.no_grad()
def test_what_a_family_adds_to_the_scores_is_there(ids):
    """T5's relative positions and Gemma 2's soft cap, made so large that they matter."""
    torch.manual_seed(0)
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
    gemma = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    capped = {"attn_logit_softcapping": 0.5, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 1}
    for config, given in (
        (T5Config(vocab_size=128, **t5), {"decoder_input_ids": ids[:, :5]}),
        (Gemma2Config(vocab_size=128, **gemma, **capped), {}),
    ):
        model = AUTO[config.model_type]._from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        expected = model(ids, **given).logits
        model.set_attn_implementation("abridged")
        assert torch.allclose(model(ids, **given).logits, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_sinks_are_refused(ids):
    query = torch.randn(1, 2, 3, 4)
    with pytest.raises(ValueError, match="sinks"):
        attention(torch.nn.Identity(), query, query, query, None, s_aux=torch.zeros(2))


@torch.no_grad()
def test_the_future_does_not_leak(eager, ids):
    model = quantized(eager)
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 128
    a, b = model(ids).logits, model(changed).logits
    assert torch.equal(a[:, :-1], b[:, :-1])
    assert not torch.equal(a[:, -1], b[:, -1])


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(eager, ids):
    model = quantized(eager)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(13) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    assert torch.allclose(found, model(ids).logits, atol=1e-5)


@torch.no_grad()
def test_quantizers_are_used(eager, ids):
    assert not torch.allclose(quantized(eager)(ids).logits, eager(ids).logits, atol=1e-6)


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without(eager, ids):
    model = quantized(eager)
    arguments = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with_cache = model.generate(ids, use_cache=True, **arguments)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **arguments))


def test_causal_attention_without_a_mask_is_refused():
    module = torch.nn.Module()
    module.is_causal = True
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="without a mask"):
        attention(module, x, x, x, None)
    module.is_causal = False
    assert attention(module, x, x, x, None)[0].shape == (1, 4, 2, 8)


def test_grouped_keys_serve_several_query_heads():
    module = torch.nn.Module()
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    found, _ = attention(module, q, k, v, None)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)


class Counted:
    """The kernels, and how often they gave an attention."""

    def __init__(self, kernels):
        self.kernels, self.served = kernels, 0

    def attend_all(self, *args):
        made = self.kernels.attend_all(*args)
        self.served += made is not None
        return made


@pytest.fixture
def kernels(monkeypatch):
    if module.kernels() is None or not module.kernels()._attends_all:
        pytest.skip("no kernels for attention")
    counted = Counted(module.kernels())
    monkeypatch.setattr(module, "kernels", lambda: counted)
    return counted


def on_kernels_and_not(model, *args, **kwargs):
    made = []
    for implementation in (ON_KERNELS, "sdpa"):
        model.set_attn_implementation(implementation)
        made.append(model(*args, **kwargs).logits)
    return made


@torch.no_grad()
def test_on_kernels_it_is_sdpa(eager, ids, kernels):
    model = copy.deepcopy(eager)
    for before in (0, 4):  # padding on the left leaves a query that sees nothing
        mask = torch.ones_like(ids)
        mask[0, :before] = 0
        ours, theirs = on_kernels_and_not(model, ids, attention_mask=mask)
        assert torch.allclose(ours[0, before:], theirs[0, before:], atol=1e-5)
        assert torch.allclose(ours[1], theirs[1], atol=1e-5)
    assert kernels.served == 4


@torch.no_grad()
def test_an_encoder_reads_padded_texts_on_kernels(ids, kernels):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = BertForSequenceClassification(config).eval()
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    ours, theirs = on_kernels_and_not(model, ids, attention_mask=mask)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert kernels.served == 2


@torch.no_grad()
def test_a_prompt_after_others_is_read_with_what_came_before(eager, kernels):
    model, ids = copy.deepcopy(eager), torch.randint(1, 128, (2, 24), generator=torch.Generator().manual_seed(1))
    for implementation in (ON_KERNELS, "sdpa"):
        model.set_attn_implementation(implementation)
        cache = model(ids[:, :12], use_cache=True).past_key_values
        second = model(ids[:, 12:], past_key_values=cache, use_cache=True).logits
        assert torch.allclose(second, model(ids).logits[:, 12:], atol=1e-5)


def test_gradients_pass_where_they_are_wanted(eager, ids, kernels):
    model = copy.deepcopy(eager)
    model.set_attn_implementation(ON_KERNELS)
    model(ids).logits.sum().backward()
    assert model.transformer.h[0].attn.c_attn.weight.grad.abs().sum() > 0
    assert kernels.served == 0

"""A learned prompt: as peft has it, in every way that a text is read, and the only thing that learns."""

import copy

import pytest
import torch

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.core.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.families.kinds import context_of
from abridged.families.logits import run_body
from abridged.methods.prompt_tuning import PromptTuning
from abridged.methods.quantization.method import Quantize
from abridged.runtime.decoding import why_slow
from abridged.runtime.prompt import attach_prompt, prompt_of
from pruned import IDS, answer, build

peft = pytest.importorskip("peft")
FAMILIES = ["gpt2", "llama"]
TOKENS = 3
#: The second text is padded on the left, as texts are that go on.
PADDED = torch.ones_like(IDS)
PADDED[1, :4] = 0


def packed(name):
    model = build(name)
    settings = {"activations": {"bits": None}}
    Quantize.model_validate(settings).build(model, families.view(model), lambda m, tokens=None: answer(m)).finish()
    return pack_model(model)


def prompted(model, tokens=TOKENS, seed=5):
    torch.manual_seed(seed)
    return PromptTuning(tokens=tokens).build(model, families.view(model), lambda model: None)


def with_pefts(model, prompt):
    """The same model in float64 under peft's own prompt tuning, with the same vectors."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    theirs = peft.get_peft_model(dense_model(model, torch.float64).double(), config).eval()
    theirs.prompt_encoder["default"].embedding.weight.data = prompt.detach().double()
    return theirs


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mask", [None, PADDED])
def test_values_and_gradients_are_pefts(name, mask):
    model = packed(name)
    prompt = prompted(model).prompt
    bare = packed(name)
    theirs = with_pefts(bare, prompt)
    model.double()
    logits = model(IDS, attention_mask=mask).logits
    expected = theirs(input_ids=IDS, attention_mask=mask).logits[:, TOKENS:]
    keep = torch.ones_like(IDS, dtype=torch.bool) if mask is None else mask.bool()
    torch.testing.assert_close(logits[keep], expected[keep], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits[keep], bare.double()(IDS, attention_mask=mask).logits[keep], atol=1e-3)
    logits[keep].square().sum().backward()
    expected[keep].square().sum().backward()
    wanted = theirs.prompt_encoder["default"].embedding.weight.grad
    torch.testing.assert_close(prompt_of(model).grad, wanted, rtol=1e-8, atol=1e-10)


def test_the_vectors_begin_as_words():
    model = packed("gpt2")
    vectors = prompted(model).parameter_groups()["prompt"][0]
    words = model.get_input_embeddings()(torch.arange(96))
    assert vectors.shape == (TOKENS, 32)
    assert all((words == vector).all(1).any() for vector in vectors)
    assert not torch.equal(vectors, prompted(packed("gpt2"), seed=6).prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token_it_is_the_text_at_once(name):
    """Whoever goes on knows of the text alone: so many tokens of a mask, and positions from the text's first."""
    model = packed(name)
    prompted(model)
    positions = (PADDED.cumsum(1) - 1).clamp(0)
    with torch.no_grad():
        whole = model(IDS, attention_mask=PADDED, position_ids=positions).logits
        cache, found = None, []
        for part in (slice(0, 6), slice(6, 7), slice(7, 10)):
            step = model(
                IDS[:, part],
                attention_mask=PADDED[:, : part.stop],
                position_ids=positions[:, part],
                past_key_values=cache,
                use_cache=True,
            )
            cache = step.past_key_values
            found.append(step.logits)
        bare = model(IDS[:1, 2:]).logits
    keep = PADDED.bool()
    torch.testing.assert_close(torch.cat(found, 1)[keep], whole[keep], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[0, 2:], bare[0], atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_own_generate_reads_it(name):
    model = packed(name)
    prompted(model)
    text = IDS[:, :4]
    with torch.no_grad():
        for _ in range(5):
            text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], 1)
    found = model.generate(IDS[:, :4], max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(found, text)
    beams = model.generate(IDS[:, :4], max_new_tokens=5, num_beams=2, do_sample=False, pad_token_id=0)
    assert beams.shape[0] == 2


def test_what_comes_out_is_of_the_text_alone():
    model = packed("gpt2")
    prompted(model)
    states = run_body(model, {"input_ids": IDS}, output_hidden_states=True, return_dict=True)
    assert {tuple(state.shape) for state in (states.last_hidden_state, *states.hidden_states)} == {(2, 10, 32)}
    torch.testing.assert_close(model.lm_head(states.last_hidden_state), model(IDS).logits)
    plain = model.transformer(IDS, return_dict=False)
    assert torch.equal(plain[0], states.last_hidden_state)
    model.set_attn_implementation("eager")
    attentions = model(IDS, output_attentions=True).attentions
    assert attentions[0].shape == (2, 4, 10, 10 + TOKENS)


def test_a_copy_has_its_own():
    model = packed("gpt2")
    prompted(model)
    with torch.no_grad():
        before = model(IDS).logits
        other = copy.deepcopy(model)
        prompt_of(other).copy_(torch.randn(TOKENS, 32))
        assert torch.equal(model(IDS).logits, before)
        assert not torch.allclose(other(IDS).logits, before, atol=1e-3)


def test_positions_are_left_to_it():
    model = packed("gpt2")
    prompted(model)
    assert context_of(model.config) == 40 - TOKENS
    model(torch.zeros(1, 40 - TOKENS, dtype=torch.int64))
    assert context_of(packed("gpt2").config) == 40


def test_fast_steps_know_of_none():
    from abridged.runtime import decoding

    model = packed("gpt2")
    decoding.install(model, families.view(model))
    prompted(model)
    assert why_slow(model) == "the model has a learned prompt"
    with pytest.raises(
        AbridgedError, match=f"the text has {39 + TOKENS} tokens, and the model's positions end after 40"
    ):
        model(torch.zeros(1, 39, dtype=torch.int64))


def test_what_it_does_not_read():
    model = packed("gpt2")
    prompted(model)
    with pytest.raises(AbridgedError, match="no second one"):
        attach_prompt(model, torch.zeros(2, 32))
    with pytest.raises(AbridgedError, match=r"masks of tokens \(B, T\)"):
        model(IDS, attention_mask=torch.zeros(2, 1, 10, 10))
    cache = model(IDS, use_cache=True).past_key_values
    cache.crop(-1)
    whole = model(IDS).logits[:, 9:]
    with pytest.raises(AbridgedError, match="are of different texts"):
        model(IDS[:, 9:], past_key_values=cache, attention_mask=torch.ones(2, 11, dtype=torch.int64))
    found = model(IDS[:, 9:], past_key_values=cache, attention_mask=torch.ones(2, 10, dtype=torch.int64)).logits
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)

"""Perplexity against one token at a time."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.core.errors import AbridgedError
from abridged.data.blocks import tokenize
from abridged.data.tokenizer import learn_tokenizer
from abridged.evaluation.perplexity import negative_log_likelihood, perplexity
from held import held_by

TEXT = "".join(f"line {i * i} is short\n" for i in range(30))
CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXT, 300, CONTEXT)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.2)).eval()


@torch.no_grad()
def one_token_at_a_time(model, tokens, context, stride):
    """Each token from the tokens before it in the first window of `context` inputs that predicts it."""
    total = 0.0
    for position in range(1, len(tokens)):
        start = 0
        while start + context < position:
            start += stride
        log_p = model(torch.tensor([tokens[start:position].tolist()])).logits[0, -1].double().log_softmax(-1)
        total -= float(log_p[tokens[position]])
    return total


@pytest.mark.parametrize("count", [2, 3, 16, 17, 18, 33, 40, 75])
@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 8), (16, 1), (8, 5)])
def test_every_token_is_predicted_once_from_its_window(model, tokenizer, count, context, stride):
    tokens = tokenize(tokenizer, TEXT)[:count]
    nll, counted = negative_log_likelihood(model, tokens, context, stride, batch_size=3)
    assert counted == count - 1
    assert nll == pytest.approx(one_token_at_a_time(model, tokens, context, stride), rel=1e-5)


def test_what_it_returns(model, tokenizer):
    tokens = tokenize(tokenizer, TEXT)
    result = perplexity(model, tokenizer, TEXT)
    nll = one_token_at_a_time(model, tokens, CONTEXT, CONTEXT)
    assert result["tokens"] == len(tokens) - 1
    assert result["words"] == 30 * 5
    assert (result["context"], result["stride"]) == (CONTEXT, CONTEXT)
    assert result["perplexity"] == pytest.approx(math.exp(nll / result["tokens"]), rel=1e-5)
    assert result["word_perplexity"] == pytest.approx(math.exp(nll / result["words"]), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_more_context_is_asked_for_by_the_stride(model, tokenizer):
    result = perplexity(model, tokenizer, TEXT, context=8, stride=2)
    assert (result["context"], result["stride"]) == (8, 2)
    tokens = tokenize(tokenizer, TEXT)
    expected = one_token_at_a_time(model, tokens, 8, 2)
    assert math.log(result["perplexity"]) * result["tokens"] == pytest.approx(expected, rel=1e-5)


def test_the_model_stays_in_its_mode(model, tokenizer):
    model.train()
    perplexity(model, tokenizer, TEXT[:100])
    assert model.training
    model.eval()


@pytest.mark.parametrize(("context", "stride"), [(17, None), (16, 17), (8, 0), (1, None), (0, None), (8, -1)])
def test_windows_that_do_not_fit(model, tokenizer, context, stride):
    with pytest.raises(AbridgedError, match="do not fit"):
        perplexity(model, tokenizer, TEXT, context, stride)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_two_tokens(model, tokenizer, text):
    with pytest.raises(AbridgedError, match="fewer than two tokens"):
        perplexity(model, tokenizer, text)


def test_a_tokenizer_that_does_not_fit(model):
    class Foreign:
        def __call__(self, texts, **options):
            return {"input_ids": [[5, 300] for _ in texts]}

    with pytest.raises(AbridgedError, match="token 300, of a vocabulary of 300"):
        perplexity(model, Foreign(), TEXT)


def test_a_model_that_is_certain_and_wrong_is_infinitely_perplexed(model, tokenizer):
    class Certain(torch.nn.Module):
        config = model.config

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, use_cache):
            logits = torch.full((*input_ids.shape, 300), -1e4)
            logits[..., 7] = 0.0
            return type("Output", (), {"logits": logits})

    assert perplexity(Certain(), tokenizer, TEXT)["perplexity"] == math.inf


def test_a_token_array_is_not_changed(model, tokenizer):
    tokens = tokenize(tokenizer, TEXT)[:40]
    before = tokens.copy()
    negative_log_likelihood(model, tokens, 16, 8)
    assert np.array_equal(tokens, before)


def test_a_limit_counts_tokens(model, tokenizer):
    some, whole = (perplexity(model, tokenizer, TEXT, limit=limit) for limit in (40, None))
    tokens = tokenize(tokenizer, TEXT)
    assert (some["tokens"], whole["tokens"]) == (40, len(tokens) - 1)
    assert some["words"] < whole["words"]
    nll, _ = negative_log_likelihood(model, tokens[:41], CONTEXT, CONTEXT)
    assert some["perplexity"] == pytest.approx(math.exp(nll / 40))


def test_logits_are_held_once():
    class Wide(torch.nn.Module):
        config = GPT2Config(vocab_size=1 << 19, n_positions=CONTEXT)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 1 << 19)})

    numbers = 4 * CONTEXT << 19
    taken = held_by(lambda: negative_log_likelihood(Wide(), np.arange(4 * CONTEXT + 1), CONTEXT, CONTEXT, 4))
    assert 0.9 < taken / (4 * numbers) < 1.5

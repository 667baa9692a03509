"""Generation: the pieces add up to what the model wrote, and settings are obeyed."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from abridged.core.errors import AbridgedError
from abridged.evaluation.generation import Sampler, generate

CONTEXT = 32


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<|end|>": len(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config).eval()


def test_greedy_pieces_are_what_a_plain_loop_over_the_logits_writes(model, tokenizer):
    ids = tokenizer("The river", return_tensors="pt")["input_ids"]
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], dim=1)
    run = generate(model, tokenizer, "The river", max_new_tokens=12, temperature=0)
    text = "".join(run)
    assert text == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert run.tokens == 12
    assert run.seconds > 0
    assert run.tokens_per_second == pytest.approx(12 / run.seconds)


def test_the_seed_decides_the_text(model, tokenizer):
    def write(seed):
        return "".join(generate(model, tokenizer, "The", max_new_tokens=20, temperature=1.0, top_k=0, seed=seed))

    assert write(1) == write(1)
    assert len({write(seed) for seed in range(4)}) > 1


def test_one_candidate_is_greedy(model, tokenizer):
    greedy = "".join(generate(model, tokenizer, "The", max_new_tokens=10, temperature=0))
    assert "".join(generate(model, tokenizer, "The", max_new_tokens=10, top_k=1, seed=3)) == greedy
    assert "".join(generate(model, tokenizer, "The", max_new_tokens=10, top_k=0, top_p=1e-6, seed=3)) == greedy


def test_it_ends_where_the_positions_do(model, tokenizer):
    run = generate(model, tokenizer, "x" * (CONTEXT - 5), max_new_tokens=100, temperature=0)
    assert not run.is_cut
    list(run)
    assert run.tokens == 5
    assert run.is_cut
    run = generate(model, tokenizer, "x" * (CONTEXT - 5), max_new_tokens=5, temperature=0)
    list(run)
    assert not run.is_cut  # as many as were asked


def test_closing_it_stops_the_model(model, tokenizer):
    run = generate(model, tokenizer, "a b", max_new_tokens=25, temperature=0)
    next(run)
    run.close()
    assert list(run) == []
    assert run.tokens < 25


def test_it_ends_with_the_text(model, tokenizer):
    end = tokenizer.eos_token_id

    def end_at_the_third(module, inputs, output):
        written.append(1)
        output.logits[..., end] = 1e4 if len(written) == 3 else -1e4

    written: list[int] = []
    hook = model.register_forward_hook(end_at_the_third)
    run = generate(model, tokenizer, "a b", max_new_tokens=25, temperature=0)
    text = "".join(run)
    hook.remove()
    assert run.tokens == 3
    assert "<|end|>" not in text


@pytest.mark.parametrize("settings", [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.6), (0.9, 8, 0.7)])
def test_draws_follow_the_chances_of_transformers_warpers(settings):
    temperature, top_k, top_p = settings
    torch.manual_seed(0)
    logits = torch.randn(20)
    warped = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    sampler = Sampler(temperature, top_k, top_p)
    drawn = torch.bincount(torch.tensor([int(sampler(logits)) for _ in range(20_000)]), minlength=20) / 20_000
    expected = torch.softmax(warped[0], 0)
    assert torch.equal(drawn > 0, expected > 0)
    assert torch.allclose(drawn, expected, atol=0.015)


def test_a_fault_of_the_model_reaches_the_reader(model, tokenizer):
    class Broken(GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError, match="no memory left"):
        list(generate(Broken(model.config), tokenizer, "a"))


@pytest.mark.parametrize(
    ("prompt", "settings", "expected"),
    [
        ("", {}, "the prompt is empty"),
        ("x" * CONTEXT, {}, "the prompt has 32 tokens, and the model can continue at most 31"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens of at least 1"),
        ("a", {"temperature": -1}, "temperature"),
        ("a", {"top_k": -1}, "top_k"),
        ("a", {"top_p": 0}, "top_p"),
        ("a", {"top_p": 1.5}, "top_p"),
    ],
)
def test_what_cannot_be_continued_is_said(model, tokenizer, prompt, settings, expected):
    with pytest.raises(AbridgedError, match=expected):
        generate(model, tokenizer, prompt, **settings)


def test_a_tokenizer_that_does_not_fit_is_said(tokenizer):
    small = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=CONTEXT, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(AbridgedError, match="the tokenizer does not fit the model"):
        generate(small, tokenizer, "zebra")

"""Noise as BART has it: what is taken away, what stays, and that a step draws the same noise again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abridged.core.errors import AbridgedError
from abridged.data.blocks import tokenize
from abridged.data.denoising import MASKED_WORDS, Denoising, Vocabulary, infill, permute_sentences
from abridged.data.pairs import Specials

SPECIALS = Specials(before=(0,), after=(2,), start=2, pad=1)
#: Every third entry begins a word, every seventh ends a sentence; 99 is the mask.
VOCABULARY = Vocabulary(np.arange(100) % 3 == 0, np.arange(100) % 7 == 0, 99)
TOKENS = st.lists(st.integers(0, 98), min_size=1, max_size=200).map(lambda ids: np.array(ids, dtype=np.int32))


def words_of(tokens):
    starts = np.flatnonzero(VOCABULARY.begins_word[tokens])
    return [tuple(word) for word in np.split(tokens, starts[starts > 0])]


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.integers(0, 2**31))
def test_permuting_keeps_every_sentence_whole(tokens, seed):
    permuted = permute_sentences(tokens, VOCABULARY, np.random.default_rng(seed))

    def sentences(ids):
        return sorted(tuple(s) for s in np.split(ids, np.flatnonzero(VOCABULARY.ends_sentence[ids][:-1]) + 1))

    assert sorted(permuted) == sorted(tokens)
    last = tuple(np.split(tokens, np.flatnonzero(VOCABULARY.ends_sentence[tokens][:-1]) + 1)[-1])
    if VOCABULARY.ends_sentence[last[-1]]:  # else the last sentence runs into the one that now follows it
        assert sentences(permuted) == sentences(tokens)


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.integers(0, 2**31))
def test_infilling_takes_three_words_in_ten_and_keeps_the_others_in_order(tokens, seed):
    tokens = np.concatenate([[0], tokens])  # begins with a word
    words = words_of(tokens)
    noisy = infill(tokens, VOCABULARY, np.random.default_rng(seed))
    kept = noisy[noisy != VOCABULARY.mask]
    left = words_of(kept) if len(kept) else []
    assert len(left) == len(words) - round(MASKED_WORDS * len(words))
    remaining = iter(words)
    assert all(word in remaining for word in left)  # a subsequence
    assert (noisy == VOCABULARY.mask).any() == (len(left) < len(words))


def test_spans_are_as_long_as_a_poisson_with_mean_three():
    tokens = np.zeros(10_000, dtype=np.int32)  # every token is a word
    noisy = infill(tokens, VOCABULARY, np.random.default_rng(0))
    masks = int((noisy == VOCABULARY.mask).sum())
    assert len(noisy) - masks == 7_000
    assert 3_000 / masks == pytest.approx(3.0, rel=0.05)


def test_a_batch_is_a_function_of_torchs_seed(tokenizer):
    text = tokenize(tokenizer, "One line of a text. Another line, which is longer! And a third? Yes.\n" * 30)
    examples = Denoising(text, 32, SPECIALS, Vocabulary.of(tokenizer))
    assert len(examples) == len(text) // 30
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(examples.batch(torch.tensor([0, 3])))
    first, again, other = batches
    assert torch.equal(first.source_ids, again.source_ids)
    assert not torch.equal(first.source_ids, other.source_ids)
    assert torch.equal(first.labels, other.labels)
    assert first.source_ids.shape == first.labels.shape == (2, 32)
    assert (first.source_ids == tokenizer.mask_token_id).any()
    assert first.labels[1, 1:-1].tolist() == text[90:120].tolist()
    assert first.source_mask.shape == (2, 32)
    assert (first.source_ids[first.source_mask == 0] == SPECIALS.pad).all()


def test_sentences_and_words_are_read_off_the_vocabulary(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    ids = tokenize(tokenizer, "Yes. Another text!")
    text = [tokenizer.decode([i]) for i in ids]
    assert [t for t, b in zip(text, vocabulary.begins_word[ids], strict=True) if b] == [t for t in text if t[0] == " "]
    assert all(vocabulary.ends_sentence[i] == t.rstrip().endswith((".", "!")) for i, t in zip(ids, text, strict=True))


def test_a_text_that_is_too_short_and_a_tokenizer_without_a_mask(tokenizer):
    with pytest.raises(AbridgedError, match="has 3 tokens, fewer than one context of 32"):
        Denoising(np.zeros(3, dtype=np.int32), 32, SPECIALS, VOCABULARY)
    from abridged.data.tokenizer import learn_tokenizer

    with pytest.raises(AbridgedError, match="a mask token"):
        Vocabulary.of(learn_tokenizer("some words " * 30, 300, 32))

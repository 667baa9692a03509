"""Tokens, blocks, and the order in which training reads them."""

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data import blocks as module
from abridged.data.blocks import Blocks, tokenize
from abridged.data.examples import Order
from abridged.data.tokenizer import END_OF_TEXT, learn_tokenizer

TEXT = "".join(f"the {i}th line — with a dash\n" for i in range(200))


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer(TEXT, 300, 32)


def test_a_learned_tokenizer_gives_every_text_back(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.eos_token == END_OF_TEXT
    for text in (TEXT, "ünlike ANYTHING\tseen 日本\n"):
        assert tokenizer.decode(tokenize(tokenizer, text)) == text


def test_a_tokenizer_is_the_same_after_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert len(loaded) == 300


@pytest.mark.parametrize("size", [10, 100, 10_000])
def test_pieces_of_a_long_text_join_to_the_tokens_of_the_whole(tokenizer, monkeypatch, size):
    whole = tokenizer(TEXT)["input_ids"]
    monkeypatch.setattr(module, "_CHUNK", size)
    tokens = tokenize(tokenizer, TEXT)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == TEXT
    if size > 40:  # no piece ends within a line
        assert tokens.tolist() == whole


def test_an_empty_text_has_no_tokens(tokenizer):
    assert tokenize(tokenizer, "").shape == (0,)


def test_blocks_predict_every_token_once_but_the_first():
    blocks = Blocks(np.arange(33, dtype=np.int32), 8)
    batch = blocks.batch(torch.arange(len(blocks)))
    inputs, labels = batch.input_ids, batch.labels
    assert len(blocks) == 4
    assert labels.flatten().tolist() == list(range(1, 33))
    assert torch.equal(inputs + 1, labels)
    assert inputs.dtype == labels.dtype == torch.int64


@pytest.mark.parametrize(("tokens", "blocks"), [(9, 1), (16, 1), (17, 2)])
def test_how_many_blocks(tokens, blocks):
    assert len(Blocks(np.zeros(tokens, dtype=np.int32), 8)) == blocks


@pytest.mark.parametrize("tokens", [0, 1, 8])
def test_a_text_shorter_than_one_context_and_its_next_token(tokens):
    with pytest.raises(AbridgedError, match=f"has {tokens} tokens, fewer than one context of 8"):
        Blocks(np.zeros(tokens, dtype=np.int32), 8)


def test_a_fingerprint_tells_texts_and_contexts_apart():
    tokens = np.arange(33, dtype=np.int32)
    prints = [Blocks(tokens, 8), Blocks(tokens, 4), Blocks(tokens + 1, 8), Blocks(tokens[:32], 8)]
    assert len({blocks.fingerprint() for blocks in prints}) == 4
    assert Blocks(tokens.copy(), 8).fingerprint() == Blocks(tokens, 8).fingerprint()


def test_every_epoch_reads_each_block_once_in_an_order_of_its_own():
    order = Order(10, seed=3)
    epochs = order[0:30].view(3, 10).tolist()
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(10))
    assert Order(10, seed=4)[0:10].tolist() != epochs[0]


def test_the_order_depends_on_nothing_but_seed_and_position():
    straight = Order(7, seed=0)[0:40]
    order = Order(7, seed=0)
    for start in (33, 5, 12, 0):  # within epochs and across their ends, backwards too
        assert order[start : start + 7].tolist() == straight[start : start + 7].tolist()

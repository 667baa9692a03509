"""A tiny student and teacher, and a batch with padding and repeated words."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.data.batch import Batch
from abridged.objectives.base import ObjectiveContext

VOCABULARY, CONTEXT, BLOCKS = 11, 8, 5


def gpt2(width: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=width, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.fixture
def student():
    return gpt2(16, 0)


@pytest.fixture
def teacher():
    return gpt2(16, 1).eval()


@pytest.fixture
def wide_teacher():
    return gpt2(32, 1).eval()


@pytest.fixture
def batch():
    torch.manual_seed(2)
    ids = torch.randint(0, VOCABULARY, (3, CONTEXT + 1))
    labels = ids[:, 1:].clone()
    labels[1, 5:] = -100
    return Batch.of(ids[:, :-1], labels, torch.tensor([3, 0, 4]))


@pytest.fixture
def context():
    return ObjectiveContext(
        hidden_size=16, teacher_hidden_size=16, vocab_size=VOCABULARY, num_blocks=BLOCKS, context=CONTEXT, layers=2
    )

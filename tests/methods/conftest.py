"""A GPT-2 small enough that a test of a whole model takes milliseconds."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def ids():
    return torch.randint(1, 128, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calibrate(ids):
    return lambda model: model(ids)

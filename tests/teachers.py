"""A teacher and a text small enough to compress within seconds."""

import random
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from abridged.data.tokenizer import learn_tokenizer

CONTEXT = 16


def write_text(path: Path, lines: int = 250) -> Path:
    """Sentences of made-up words, drawn so that some follow others more often than not."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(60)]
    sentences = (
        " ".join(words[(start * 7 + i * i) % 60] for i in range(8)) for start in draw.choices(range(60), k=lines)
    )
    path.write_text("\n".join(sentences) + "\n")
    return path


def write_teacher(directory: Path, text: Path, **config) -> Path:
    """A GPT-2 of width 32 with two layers, random but for its scale, and a tokenizer learned on `text`."""
    tokenizer = learn_tokenizer(text.read_text(), 300, CONTEXT)
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2, **config}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.1)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

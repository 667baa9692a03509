"""A teacher, a text and recipes small enough to compress within seconds."""

import random
from pathlib import Path

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from abridged.data.tokenizer import learn_tokenizer
from abridged.models.create import ENCODER_SPECIALS

CONTEXT = 16
#: Sixteen fables and their morals.
FABLES = Path(__file__).parent / "assets" / "fables" / "fables.jsonl"
QUANTIZE = {
    "weights": {"bits": 4, "quantizer": "dynamic", "granularity": "per_tensor"},
    "embeddings": {"bits": 4, "quantizer": "dynamic", "granularity": "per_channel"},
    "activations": {"bits": 8, "quantizer": "learned", "attention": True},
}
OBJECTIVES = {
    "logits": {"weight": 1.0},
    "contrastive": {"weight": 0.1, "bank": "position", "dimensions": 8, "num_negatives": 6},
}
TRAINING = {
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "learning_rates": {"scale": 1e-3, "clip": 1e-3},
    "evaluate_every": 3,
    "evaluate_tokens": 200,
    "save_every": 2,
    "compile": "no",
    "mixed_precision": "no",
}


def make_recipe(stages: int = 1, quantize=None, objectives=None, **training) -> dict:
    """A recipe of one stage at 4 bits, or of two at 4 and 2."""
    two_bits = {**QUANTIZE, "weights": {**QUANTIZE["weights"], "bits": 2}, "embeddings": {"bits": 2}}
    return {
        "name": "tiny",
        "description": "for tests",
        "stages": [
            {
                "name": f"stage {number}",
                "methods": {"quantize": {**(two_bits if number else QUANTIZE), **(quantize or {})}},
                "objectives": objectives or OBJECTIVES,
                "training": {**TRAINING, **training},
            }
            for number in range(stages)
        ],
    }


def write_text(path: Path, lines: int = 250) -> Path:
    """Sentences of made-up words, drawn so that some follow others more often than not."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 6))) for _ in range(60)]
    starts = draw.choices(range(60), k=lines)
    path.write_text("".join(" ".join(words[(start * 7 + i * i) % 60] for i in range(8)) + "\n" for start in starts))
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


def write_bart(directory: Path, text: str, **config) -> Path:
    """A BART of width 32 with two layers on each side, random but for its scale, and a tokenizer learned on `text`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "max_position_embeddings": 64}
    inner = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = BartForConditionalGeneration(
        BartConfig(**sizes, **inner, **ENCODER_SPECIALS, dropout=0.0, init_std=0.15, **config)
    )
    model.save_pretrained(directory)
    learn_tokenizer(text, sizes["vocab_size"], sizes["max_position_embeddings"], encoder=True).save_pretrained(
        directory
    )
    return directory


def write_bert(directory: Path, text: str, **config) -> Path:
    """A BERT of width 32 with two layers and no head, random but for its scale, and a tokenizer learned on `text`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    inner = {"intermediate_size": 64, "max_position_embeddings": 48, "pad_token_id": 1, "initializer_range": 0.15}
    BertModel(BertConfig(**sizes, **inner, **config)).save_pretrained(directory)
    tokenizer = learn_tokenizer(text, sizes["vocab_size"], inner["max_position_embeddings"], encoder=True)
    tokenizer.save_pretrained(directory)
    return directory


def write_reviews(path: Path, rows: int = 240) -> Path:
    """Sentences with a label that one of their words gives away; a .tsv with the columns text and label."""
    draw = random.Random(1)
    words = ["film", "actor", "plot", "scene", "music", "story", "camera", "town"]
    lines = []
    for _ in range(rows):
        label = draw.choice(["bad", "good"])
        told = draw.choice({"bad": ["dull", "poor", "weak"], "good": ["fine", "warm", "bright"]}[label])
        text = [*draw.choices(words, k=draw.randint(2, 6)), told, *draw.choices(words, k=2)]
        lines.append(f"{' '.join(text)}\t{label}")
    path.write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return path

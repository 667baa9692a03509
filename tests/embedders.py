"""A tiny model of sentences, with the files of sentence-transformers beside it or without."""

import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from abridged.data.tokenizer import learn_tokenizer

WORDS = (
    "a dull plot and bright scene or the old man reads some long books in small red house by sea".split()  # noqa: SIM905
)


def sentences(count, seed=0):
    """So many different sentences of four to nine words."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        found[" ".join(draw.sample(WORDS, draw.randint(4, 9)))] = None
    return list(found)


def embedder(folder, pooling="mean", normalize=True, max_length=None, files=True, more=None, decoder=False, **prompts):
    """The directory of a tiny BERT without a head, or of a `decoder` with one.

    more: content of further files, by name; None: no such file.
    """
    folder = Path(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=300, max_position_embeddings=64, initializer_range=0.4, **sizes))
    if decoder:
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=300, max_position_embeddings=64, initializer_range=0.4, **sizes)
        )
    model.save_pretrained(folder)
    learn_tokenizer("\n".join(sentences(200)), 300, 64, encoder=True).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if normalize else {})}
    written = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds.items())
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode": pooling},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
    }
    for name, content in ({**written, **(more or {})} if files else {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder

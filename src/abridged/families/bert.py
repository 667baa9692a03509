"""BERT and RoBERTa: an encoder, its embeddings of tokens, positions and token types, and the heads it may carry."""

from typing import Any

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix

#: Linear layers between the encoder and what is particular to a task; they are quantised as the encoder's are.
_POOLERS = ("pooler.dense", "cls.predictions.transform.dense", "classifier.dense", "lm_head.dense")
#: Output layers that read the token embedding.
_TIED_HEADS = ("cls.predictions.decoder", "lm_head.decoder")


def anatomy(model: Any) -> Anatomy:
    """Describe a BERT or RoBERTa with any head, or none. What maps to the labels of a task is left in full precision.

    Raises:
        AbridgedError: the model is a decoder, or its masked language head is not tied to the token embedding.
    """
    config = model.config
    if config.is_decoder or config.add_cross_attention:
        raise AbridgedError(f"a {type(model).__name__} that is a decoder is not supported: the encoder is")
    base = getattr(model, "base_model_prefix", "")
    prefix = f"{base}." if hasattr(model, base) else ""
    modules = dict(model.named_modules())
    heads = tuple(name for name in _TIED_HEADS if name in modules)
    if heads and not config.tie_word_embeddings:
        raise AbridgedError(f"a {type(model).__name__} with an untied head is not supported: set tie_word_embeddings")
    width, inner, e = config.hidden_size, config.intermediate_size, f"{prefix}embeddings"
    matrices = [
        Matrix(f"{e}.word_embeddings", "embedding", "embedding", None, config.vocab_size, width, tied=heads),
        Matrix(f"{e}.position_embeddings", "embedding", "positions", None, config.max_position_embeddings, width),
        Matrix(f"{e}.token_type_embeddings", "embedding", "positions", None, config.type_vocab_size, width),
    ]
    for i in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{i}"
        matrices += [
            *(
                Matrix(f"{layer}.attention.{name}", "linear", "attention", i, width, width)
                for name in ("self.query", "self.key", "self.value", "output.dense")
            ),
            Matrix(f"{layer}.intermediate.dense", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.output.dense", "linear", "ffn", i, width, inner, input="asymmetric"),
        ]
    poolers = [path for name in _POOLERS for path in (name, prefix + name) if path in modules]
    matrices += [Matrix(path, "linear", "pooler", None, width, width) for path in dict.fromkeys(poolers)]
    layers = [f"{prefix}encoder.layer.{i}" for i in range(config.num_hidden_layers)]
    return Anatomy(
        model_type=config.model_type,
        hidden_size=width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        # RoBERTa counts positions from the one after the padding's
        context=config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0),
        matrices=matrices,
        attentions=[f"{layer}.attention.self" for layer in layers],
        positions=[f"{e}.position_embeddings", f"{e}.token_type_embeddings"],
        blocks=layers,
    )

"""BERT and RoBERTa: an encoder, its embeddings of tokens, positions and token types, and the heads it may carry."""

from typing import Any

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix, Part

#: Linear layers between the encoder and what is particular to a task; they are quantised as the encoder's are.
_POOLERS = ("pooler.dense", "cls.predictions.transform.dense", "classifier.dense", "lm_head.dense")
#: What reads a pooler: then its rows are units of its own.
_POOLED = {"pooler.dense": "classifier", "classifier.dense": "classifier.out_proj"}
#: Layers before the tied head, which write what it compares with embeddings, and their norms.
_TRANSFORMS = {
    "cls.predictions.transform.dense": "cls.predictions.transform.LayerNorm",
    "lm_head.dense": "lm_head.layer_norm",
}
#: Output layers for the labels of tokens, and for where answers begin and end.
_READERS = ("classifier", "qa_outputs")
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
    parts = []
    for i, layer in enumerate(layers):
        attention, output = f"{layer}.attention", f"{layer}.output.dense"
        inputs = tuple(f"{attention}.self.{name}" for name in ("query", "key", "value"))
        parts += [
            Part(f"{attention}.self", "attention", i, inputs, f"{attention}.output.dense", config.num_attention_heads),
            Part(output, "ffn", i, (f"{layer}.intermediate.dense",), output, inner),
        ]
    for name, reader in _POOLED.items():
        pooler = next((path for path in (name, prefix + name) if path in modules and reader in modules), None)
        if pooler is not None:
            parts.append(Part(reader, "pooler", None, (pooler,), reader, width))
    transforms = [path for path in _TRANSFORMS if path in modules]
    norms = [f"{layer}.{part}.LayerNorm" for layer in layers for part in ("attention.output", "output")]
    pooled = {part.output for part in parts}
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
        parts=parts,
        norms=[f"{e}.LayerNorm", *norms, *(_TRANSFORMS[path] for path in transforms)],
        writers=transforms,
        readers=[path for path in _READERS if path not in pooled and hasattr(modules.get(path), "weight")],
    )

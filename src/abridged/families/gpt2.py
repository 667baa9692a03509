"""GPT-2: fused Q, K and V in one Conv1D, weights stored (in, out), head tied to the token embedding or for labels."""

from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.families.anatomy import Anatomy, Matrix, Part

if TYPE_CHECKING:
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel


def anatomy(model: "GPT2LMHeadModel | GPT2ForSequenceClassification") -> Anatomy:
    """Describe a GPT2LMHeadModel, or one that labels texts; what maps to the labels is left in full precision.

    Raises:
        AbridgedError: the model has cross-attention or an untied head, which no published GPT-2 has.
    """
    config = model.config
    if config.add_cross_attention:
        raise AbridgedError("GPT-2 with cross-attention is not supported: only decoder-only models are")
    tied = ("lm_head",) if hasattr(model, "lm_head") else ()
    if tied and not config.tie_word_embeddings:
        raise AbridgedError("GPT-2 with an untied head is not supported: set tie_word_embeddings in its config")
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    matrices = [
        Matrix("transformer.wte", "embedding", "embedding", None, config.vocab_size, width, tied=tied),
        Matrix("transformer.wpe", "embedding", "positions", None, config.n_positions, width),
    ]
    for i in range(config.n_layer):
        h = f"transformer.h.{i}"
        matrices += [
            Matrix(f"{h}.attn.c_attn", "linear", "attention", i, 3 * width, width, transposed=True, fused=3),
            Matrix(f"{h}.attn.c_proj", "linear", "attention", i, width, width, transposed=True),
            Matrix(f"{h}.mlp.c_fc", "linear", "ffn", i, inner, width, transposed=True),
            Matrix(f"{h}.mlp.c_proj", "linear", "ffn", i, width, inner, transposed=True, input="asymmetric"),
        ]
    layers = [f"transformer.h.{i}" for i in range(config.n_layer)]
    parts = []
    for i, h in enumerate(layers):
        parts += [
            Part(f"{h}.attn", "attention", i, (f"{h}.attn.c_attn",), f"{h}.attn.c_proj", config.n_head),
            Part(f"{h}.mlp.c_proj", "ffn", i, (f"{h}.mlp.c_fc",), f"{h}.mlp.c_proj", inner),
        ]
    return Anatomy(
        model_type="gpt2",
        hidden_size=width,
        layers=config.n_layer,
        heads=config.n_head,
        context=config.n_positions,
        matrices=matrices,
        attentions=[f"{h}.attn" for h in layers],
        positions=["transformer.wpe"],
        blocks=layers,
        parts=parts,
        norms=[*(f"{h}.{norm}" for h in layers for norm in ("ln_1", "ln_2")), "transformer.ln_f"],
        readers=["score"] if hasattr(model, "score") else [],
    )

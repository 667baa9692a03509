"""What no probing can know: the names that transformers' configs and modules have for the same thing."""

from __future__ import annotations

from typing import Any

#: The longest sequence, as configs call it; a model with none (T5, BLOOM) takes any, and is given UNBOUND.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_target_positions", "seq_length")
UNBOUND = 512
#: Types whose configs may name one that nothing in the model is bound to: their positions are relative.
WITHOUT_POSITIONS = ("t5", "mt5", "umt5", "longt5")
#: Types that count positions from behind the padding's row, so that the first rows of the table are for no token.
BEHIND_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip

#: What else configs call a size: blocks, the width of the stream, heads, and the inner width of feed-forward parts.
DEPTH_NAMES = (
    "num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
WIDTH_NAMES = ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size")
HEAD_NAMES = (
    "num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads",
)  # fmt: skip
INNER_NAMES = (
    "intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim",
    "ffn_hidden_size",
)  # fmt: skip

#: Modules in blocks that mix tokens along time by a state or a filter: no attention, and nothing here was tried on it.
MIXERS = ("Conv1d",)


def first_of(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of the settings that the config has as a positive number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None

"""LLaMA and what is built like it: grouped-query attention, gated feed-forward part, RMSNorm, rotary positions."""

from typing import TYPE_CHECKING

from abridged.families.anatomy import Anatomy, Matrix, Part

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification


def anatomy(model: "LlamaForCausalLM | LlamaForSequenceClassification") -> Anatomy:
    """Describe a LlamaForCausalLM, or one that labels texts; Mistral and Qwen2 name their parts alike.

    What maps to the labels is left in full precision.
    """
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    headed = hasattr(model, "lm_head")
    tied = ("lm_head",) if headed and config.tie_word_embeddings else ()
    matrices = [Matrix("model.embed_tokens", "embedding", "embedding", None, config.vocab_size, width, tied=tied)]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        matrices += [
            Matrix(f"{layer}.self_attn.q_proj", "linear", "attention", i, queries, width),
            Matrix(f"{layer}.self_attn.k_proj", "linear", "attention", i, keys, width),
            Matrix(f"{layer}.self_attn.v_proj", "linear", "attention", i, keys, width),
            Matrix(f"{layer}.self_attn.o_proj", "linear", "attention", i, width, queries),
            Matrix(f"{layer}.mlp.gate_proj", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.mlp.up_proj", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.mlp.down_proj", "linear", "ffn", i, width, inner),
        ]
    if headed and not tied:
        matrices.append(Matrix("lm_head", "linear", "head", None, config.vocab_size, width))
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    parts = []
    for i, layer in enumerate(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        readers = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        gated = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        parts += [
            Part(attention, "attention", i, readers, f"{attention}.o_proj", config.num_key_value_heads),
            Part(f"{mlp}.down_proj", "ffn", i, gated, f"{mlp}.down_proj", inner),
        ]
    norms = [f"{layer}.{norm}" for layer in layers for norm in ("input_layernorm", "post_attention_layernorm")]
    return Anatomy(
        model_type=config.model_type,
        hidden_size=width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        context=config.max_position_embeddings,
        matrices=matrices,
        attentions=[f"{layer}.self_attn" for layer in layers],
        blocks=layers,
        parts=parts,
        norms=[*norms, "model.norm"],
        readers=["score"] if hasattr(model, "score") else [],
    )

"""LLaMA and what is built like it: grouped-query attention, gated feed-forward part, RMSNorm, rotary positions."""

from typing import TYPE_CHECKING

from abridged.families.anatomy import Anatomy, Matrix

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def anatomy(model: "LlamaForCausalLM") -> Anatomy:
    """Describe a LlamaForCausalLM, or a MistralForCausalLM or Qwen2ForCausalLM, which name their parts alike."""
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    tied = ("lm_head",) if config.tie_word_embeddings else ()
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
    if not tied:
        matrices.append(Matrix("lm_head", "linear", "head", None, config.vocab_size, width))
    return Anatomy(
        model_type=config.model_type,
        hidden_size=width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        context=config.max_position_embeddings,
        matrices=matrices,
        attentions=[f"model.layers.{i}.self_attn" for i in range(config.num_hidden_layers)],
        blocks=[f"model.layers.{i}" for i in range(config.num_hidden_layers)],
    )

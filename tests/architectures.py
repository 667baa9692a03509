"""Tiny random models of the types that llama.cpp runs, and what of their configurations is not the default."""

import torch
import transformers

_IDS = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.15}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
_T5 |= {"relative_attention_num_buckets": 8, "decoder_start_token_id": 0}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]}
_LONG |= {"short_factor": [1.0, 1.0, 1.0, 1.1, 1.1, 1.2, 1.2, 1.3], "original_max_position_embeddings": 32}

#: name: (model type, settings)
CASES = {
    "gpt2": ("gpt2", {"n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "llama": ("llama", {**_SIZES, "head_dim": 16}),
    "llama-biases": ("llama", {**_SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-3": ("llama", {**_SIZES, "rope_parameters": _LLAMA3}),
    "llama-3-short": ("llama", {**_SIZES, "rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 32}}),
    "mistral": ("mistral", {**_SIZES, "sliding_window": 32}),
    "qwen2": ("qwen2", _SIZES),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "qwen3",
        {
            **_SIZES,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gemma": ("gemma", {**_SIZES, "head_dim": 16}),
    "gemma2": ("gemma2", {**_SIZES, **_GEMMA, "num_hidden_layers": 3}),
    "gemma3": ("gemma3_text", {**_SIZES, **_GEMMA, "num_hidden_layers": 7, "rope_parameters": _GEMMA3_ROPE}),
    "phi3": ("phi3", _SIZES),
    "phi3-long": ("phi3", {**_SIZES, "rope_parameters": _LONG}),
    "gpt_neox": ("gpt_neox", {**_SIZES, "rotary_pct": 0.5}),
    "gpt_neox-serial": ("gpt_neox", {**_SIZES, "use_parallel_residual": False}),
    "smollm3": ("smollm3", {**_SIZES, "num_hidden_layers": 4}),
    "olmo2": ("olmo2", _SIZES),
    "granite": (
        "granite",
        {
            **_SIZES,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "t5": ("t5", {**_T5, "feed_forward_proj": "relu"}),
    "flan-t5": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}


def build(case: str, **changes):
    """The random model of a case, in evaluation mode; its norms and biases are random too."""
    model_type, settings = CASES[case]
    known = transformers.AutoConfig.for_model(model_type)
    settings = {key: value for key, value in {**_IDS, **settings, **changes}.items() if hasattr(known, key)} | {
        key: value for key, value in settings.items() if key == "rotary_pct"
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model

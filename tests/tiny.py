"""One tiny random model of every type and head that is served, or refused: `TINY[name]() -> (class, config)`.

Width 64, 4 heads (of decoders with grouped queries, 2 of keys and values), inner width 96, 2 layers, 128 tokens, 64
positions. `build(name)` makes the model, its parameters all random, so that no bias is zero and no norm one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

WIDTH, HEADS, GROUPS, INNER, LAYERS, TOKENS, CONTEXT = 64, 4, 2, 96, 2, 128, 64

_IDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
_COMMON = {"vocab_size": TOKENS, **_IDS}
_PLAIN = {
    **_COMMON,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": GROUPS}
_WIDE = {**_GROUPED, "head_dim": 16}
_PAIR = {
    **_COMMON,
    "decoder_start_token_id": 2,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "max_position_embeddings": CONTEXT,
}
_T5 = {
    **_COMMON,
    "decoder_start_token_id": 1,
    "d_model": WIDTH,
    "d_kv": 16,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_heads": HEADS,
}
_PIXELS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "image_size": 16,
    "patch_size": 4,
}
_LABELS = {"num_labels": 3}

Described = Callable[[], tuple[type, Any]]


def _tiny(class_name: str, config_name: str, *settings: dict[str, Any], **further: Any) -> Described:
    """A model of a class of transformers with a config of one; later settings win."""
    merged: dict[str, Any] = {}
    for one in (*settings, further):
        merged |= one
    return lambda: (getattr(transformers, class_name), getattr(transformers, config_name)(**merged))


#: Served whole: quantised, factored, pruned, packed, reloaded, exported.
FIRST: dict[str, Described] = {
    "gpt2": _tiny(
        "GPT2LMHeadModel",
        "GPT2Config",
        _COMMON,
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": CONTEXT},
    ),
    "llama": _tiny("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "llama-3": _tiny(
        "LlamaForCausalLM",
        "LlamaConfig",
        _GROUPED,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama-tied": _tiny("LlamaForCausalLM", "LlamaConfig", _GROUPED, tie_word_embeddings=True),
    "mistral": _tiny("MistralForCausalLM", "MistralConfig", _GROUPED, sliding_window=8),
    "qwen2": _tiny("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": _tiny("Qwen3ForCausalLM", "Qwen3Config", _WIDE, head_dim=32),
    "gemma": _tiny("GemmaForCausalLM", "GemmaConfig", _WIDE),
    "gemma2": _tiny(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _WIDE,
        sliding_window=8,
        query_pre_attn_scalar=16,
        final_logit_softcapping=2.0,
    ),
    "gemma3_text": _tiny("Gemma3ForCausalLM", "Gemma3TextConfig", _WIDE, sliding_window=8, query_pre_attn_scalar=16),
    "phi": _tiny("PhiForCausalLM", "PhiConfig", _GROUPED),
    "phi3": _tiny("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "smollm3": _tiny("SmolLM3ForCausalLM", "SmolLM3Config", _GROUPED),
    "olmo2": _tiny("Olmo2ForCausalLM", "Olmo2Config", _GROUPED),
    "granite": _tiny(
        "GraniteForCausalLM",
        "GraniteConfig",
        _GROUPED,
        logits_scaling=4.0,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "gpt_neox": _tiny("GPTNeoXForCausalLM", "GPTNeoXConfig", _PLAIN),
    "opt": _tiny(
        "OPTForCausalLM",
        "OPTConfig",
        _COMMON,
        {"hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": LAYERS},
        {"num_attention_heads": HEADS, "ffn_dim": INNER, "max_position_embeddings": CONTEXT},
    ),
    "starcoder2": _tiny("Starcoder2ForCausalLM", "Starcoder2Config", _GROUPED, sliding_window=None),
    "stablelm": _tiny("StableLmForCausalLM", "StableLmConfig", _GROUPED),
    "bert": _tiny("BertForSequenceClassification", "BertConfig", _PLAIN, _LABELS),
    "roberta": _tiny("RobertaForSequenceClassification", "RobertaConfig", _PLAIN, _LABELS),
    "xlm-roberta": _tiny("XLMRobertaForSequenceClassification", "XLMRobertaConfig", _PLAIN, _LABELS),
    "distilbert": _tiny(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _COMMON,
        _LABELS,
        {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER, "max_position_embeddings": CONTEXT},
    ),
    "modernbert": _tiny(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _PLAIN,
        _LABELS,
        cls_token_id=0,
        sep_token_id=2,
        local_attention=8,
    ),
    "bart": _tiny("BartForConditionalGeneration", "BartConfig", _PAIR),
    "mbart": _tiny("MBartForConditionalGeneration", "MBartConfig", _PAIR),
    "pegasus": _tiny("PegasusForConditionalGeneration", "PegasusConfig", _PAIR),
    "marian": _tiny("MarianMTModel", "MarianConfig", _PAIR),
    "t5": _tiny("T5ForConditionalGeneration", "T5Config", _T5),
    "flan-t5": _tiny(
        "T5ForConditionalGeneration", "T5Config", _T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": _tiny("MT5ForConditionalGeneration", "MT5Config", _T5, tie_word_embeddings=False),
}

#: Quantised, factored, packed and reloaded; pruned where it can be.
SECOND: dict[str, Described] = {
    "gptj": _tiny(
        "GPTJForCausalLM",
        "GPTJConfig",
        _COMMON,
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": CONTEXT},
        rotary_dim=8,
    ),
    "bloom": _tiny("BloomForCausalLM", "BloomConfig", _COMMON, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
    "falcon": _tiny("FalconForCausalLM", "FalconConfig", _PLAIN, ffn_hidden_size=INNER),
    "gpt_neo": _tiny(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _COMMON,
        {"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "intermediate_size": INNER},
        {"max_position_embeddings": CONTEXT, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "electra": _tiny("ElectraForSequenceClassification", "ElectraConfig", _PLAIN, _LABELS, embedding_size=32),
    "mpnet": _tiny("MPNetForSequenceClassification", "MPNetConfig", _PLAIN, _LABELS),
    "albert": _tiny("AlbertForSequenceClassification", "AlbertConfig", _PLAIN, _LABELS, embedding_size=32),
    "deberta-v2": _tiny(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _PLAIN,
        _LABELS,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "m2m_100": _tiny("M2M100ForConditionalGeneration", "M2M100Config", _PAIR),
    "blenderbot": _tiny("BlenderbotForConditionalGeneration", "BlenderbotConfig", _PAIR),
    "cohere2": _tiny("Cohere2ForCausalLM", "Cohere2Config", _GROUPED, sliding_window=8, logit_scale=0.25),
}

#: Served through the library: their inputs are pixels or features.
LIBRARY: dict[str, Described] = {
    "vit": _tiny("ViTForImageClassification", "ViTConfig", _PIXELS, _LABELS),
    "clip": _tiny("CLIPModel", "CLIPConfig", text_config=_PLAIN, vision_config=_PIXELS, projection_dim=WIDTH),
    "siglip": _tiny("SiglipModel", "SiglipConfig", text_config=_PLAIN, vision_config=_PIXELS),
    "blip": _tiny(
        "BlipForConditionalGeneration",
        "BlipConfig",
        text_config={**_PLAIN, "encoder_hidden_size": WIDTH, "projection_dim": WIDTH},
        vision_config=_PIXELS,
        projection_dim=WIDTH,
    ),
    "whisper": _tiny(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _PAIR,
        max_source_positions=32,
        max_target_positions=CONTEXT,
        num_mel_bins=16,
    ),
}

#: Further heads of what is above.
HEADS_OF: dict[str, Described] = {
    "gpt2-labels": _tiny(
        "GPT2ForSequenceClassification",
        "GPT2Config",
        _COMMON,
        _LABELS,
        {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": CONTEXT},
    ),
    "llama-labels": _tiny("LlamaForSequenceClassification", "LlamaConfig", _GROUPED, _LABELS),
    "llama-tokens": _tiny("LlamaForTokenClassification", "LlamaConfig", _GROUPED, _LABELS),
    "llama-answers": _tiny("LlamaForQuestionAnswering", "LlamaConfig", _GROUPED),
    "llama-bare": _tiny("LlamaModel", "LlamaConfig", _GROUPED),
    "bert-tokens": _tiny("BertForTokenClassification", "BertConfig", _PLAIN, _LABELS),
    "bert-answers": _tiny("BertForQuestionAnswering", "BertConfig", _PLAIN),
    "bert-masked": _tiny("BertForMaskedLM", "BertConfig", _PLAIN),
    "bert-bare": _tiny("BertModel", "BertConfig", _PLAIN),
    "roberta-tokens": _tiny("RobertaForTokenClassification", "RobertaConfig", _PLAIN, _LABELS),
    "roberta-answers": _tiny("RobertaForQuestionAnswering", "RobertaConfig", _PLAIN),
    "roberta-masked": _tiny("RobertaForMaskedLM", "RobertaConfig", _PLAIN),
    "roberta-bare": _tiny("RobertaModel", "RobertaConfig", _PLAIN),
    "distilbert-masked": _tiny(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        _COMMON,
        {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER, "max_position_embeddings": CONTEXT},
    ),
    "modernbert-masked": _tiny(
        "ModernBertForMaskedLM", "ModernBertConfig", _PLAIN, cls_token_id=0, sep_token_id=2, local_attention=8
    ),
    "mpnet-bare": _tiny("MPNetModel", "MPNetConfig", _PLAIN),
    "electra-masked": _tiny("ElectraForMaskedLM", "ElectraConfig", _PLAIN, embedding_size=32),
    "bart-labels": _tiny("BartForSequenceClassification", "BartConfig", _PAIR, _LABELS),
    "t5-encoder": _tiny("T5EncoderModel", "T5Config", _T5),
}

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

#: Refused in one sentence: most of their weights no method reaches.
REFUSED: dict[str, Described] = {
    "mixtral": _tiny("MixtralForCausalLM", "MixtralConfig", _GROUPED, _EXPERTS),
    "qwen3_moe": _tiny(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _WIDE,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=INNER,
        decoder_sparse_step=1,
    ),
    "gpt_oss": _tiny("GptOssForCausalLM", "GptOssConfig", _WIDE, _EXPERTS, sliding_window=8),
    "deepseek_v3": _tiny(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _PLAIN,
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
        {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
        {"moe_intermediate_size": INNER, "first_k_dense_replace": 1, "num_key_value_heads": HEADS},
    ),
    "mamba": _tiny(
        "MambaForCausalLM", "MambaConfig", _COMMON, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=8
    ),
    "qwen3_5_text": _tiny(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        _WIDE,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "jamba": _tiny(
        "JambaForCausalLM",
        "JambaConfig",
        _GROUPED,
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
}

#: All that is served.
TINY: dict[str, Described] = {**FIRST, **SECOND, **LIBRARY, **HEADS_OF}

#: The five of the fast suite.
FAST = ("gpt2", "qwen3", "modernbert", "bart", "t5")


def build(name: str, seed: int = 0) -> Any:
    """A model of `TINY` or `REFUSED` in evaluation mode, every parameter moved by noise of 0.05."""
    kind, config = (TINY | REFUSED)[name]()
    torch.manual_seed(seed)
    model = kind(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # a table of sines is what it is
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def inputs(model: Any, batch: int = 2, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs of one batch for a model of the lists above: ids of tokens, pixels, or features."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    config = model.config
    vision = getattr(config, "vision_config", config)
    ids = torch.randint(3, TOKENS, (batch, length), generator=draw)
    if hasattr(vision, "image_size"):
        size = (batch, 3, vision.image_size, vision.image_size)
        found["pixel_values"] = torch.randn(size, generator=draw)
    if model.main_input_name == "input_features":
        found["input_features"] = torch.randn(
            batch, config.num_mel_bins, 2 * config.max_source_positions, generator=draw
        )
    if hasattr(config.get_text_config(), "vocab_size") and "input_features" not in found:
        ids[:, -1] = 2  # what labels texts by an encoder-decoder wants one end of each
        found["input_ids"] = ids
    if getattr(config, "is_encoder_decoder", False) and "ForSequence" not in type(model).__name__:
        found["decoder_input_ids"] = ids.flip(1)
    return found

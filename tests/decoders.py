"""Decoders whose steps have every trait that some type has: those of `tiny`, some of them changed, and some more."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tiny import CONTEXT, GROUPS, HEADS, INNER, LAYERS, TINY, TOKENS, WIDTH, build

_MIXED = ["sliding_attention", "full_attention"]
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}

#: As `tiny` has them.
PLAIN = (
    *("gpt2", "llama", "llama-3", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi"),
    *("phi3", "smollm3", "olmo2", "granite", "gpt_neox", "opt", "starcoder2", "stablelm"),
)
#: Name -> one of `tiny`, and what is changed in its config.
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, yarn and biases": ("llama", {"rope_parameters": _YARN, "attention_bias": True, "mlp_bias": True}),
    "qwen2, every other layer slides": (
        "qwen2",
        {"sliding_window": 6, "use_sliding_window": True, "layer_types": _MIXED},
    ),
    "gemma2, caps that matter": ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5}),
    "gemma3_text, both kinds of layers": ("gemma3_text", {"layer_types": _MIXED}),
    "smollm3, a layer without positions": ("smollm3", {"no_rope_layers": [1, 0]}),
    "gpt_neox, one part after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "phi, all of a head turned": ("phi", {"rope_parameters": _HALF | {"partial_rotary_factor": 1.0}}),
    "phi3, sliding": ("phi3", {"sliding_window": 6}),
    "starcoder2, sliding": ("starcoder2", {"sliding_window": 6}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "rope_parameters": _HALF}),
}
#: transformers' `model_type` of further types -> their settings.
FURTHER: dict[str, dict[str, Any]] = {
    "cohere": {},
    "cohere2": {"sliding_window": 6, "layer_types": _MIXED},
    "glm": {"head_dim": 16},
    "helium": {"head_dim": 16},
    "nemotron": {},
    "ernie4_5": {"head_dim": 16},
    "olmo3": {"sliding_window": 6, "layer_types": _MIXED},
    "exaone4": {"sliding_window": 6, "layer_types": _MIXED},
    "biogpt": {},
}
DECODERS = (*PLAIN, *CHANGED, *FURTHER)
#: What the tests of every change run over; the rest are slow.
FAST = ("gpt2", "llama-3", "mistral", "gemma2, caps that matter", "phi3, sliding")


def decoder(name: str) -> Any:
    """One of `DECODERS` in evaluation mode, every parameter random."""
    if name in PLAIN:
        return build(name)
    if name in CHANGED:
        base, changes = CHANGED[name]
        kind, config = TINY[base]()
        config = type(config).from_dict({**config.to_dict(), **changes})
    else:
        sizes = {"vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        sizes |= {"num_key_value_heads": GROUPS, "intermediate_size": INNER, "max_position_embeddings": CONTEXT}
        ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        kind, config = None, AutoConfig.for_model(name, **sizes, **ends, **FURTHER[name])
    torch.manual_seed(0)
    model = (AutoModelForCausalLM.from_config(config) if kind is None else kind(config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model

"""What llama.cpp calls the parts of our families, which configurations it runs, and the sizes it wants to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from abridged.exporters.gguf_layers import LayerSizes

_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
_LABELLER = "BertForSequenceClassification"


@dataclass(frozen=True)
class GgufFamily:
    """A family as an architecture of llama.cpp.

    Attributes:
        names: GGUF's tensor names for ours; {} is the layer.
        faults: of a configuration, what llama.cpp would run otherwise, and whether it is there.
        add_sizes: writes the metadata that this family has beyond what all have.
        plain: parts that llama.cpp reads in FP32 only.
        unread: parts of a model that it does not run, and that are left out.
        notes: what a person should know of a model's file.
    """

    names: dict[str, str]
    faults: Callable[[Any], dict[str, bool]]
    add_sizes: Callable[[GGUFWriter, Any, LayerSizes | None], None]
    plain: tuple[str, ...] = ()
    unread: Callable[[Any], tuple[str, ...]] = lambda config: ()
    notes: Callable[[Any], list[str]] = lambda config: []

    @property
    def in_full(self) -> tuple[str, ...]:
        """What is no matrix to llama.cpp: position embeddings, and what it reads in FP32 only."""
        return (*self.plain, "position_embd")

    def place(self, path: str) -> str:
        """llama.cpp's name for the module at `path`. Raises AbridgedError where it has none."""
        words = path.split(".")
        layer = next((word for word in words if word.isdigit()), "")
        pattern = ".".join("{}" if word.isdigit() else word for word in words)
        if pattern not in self.names:
            raise AbridgedError(f"GGUF export does not know what {path} is")
        return self.names[pattern].format(layer)

    def check(self, config: Any) -> None:
        """Raise AbridgedError for a configuration that llama.cpp runs otherwise."""
        for fault, found in self.faults(config).items():
            if found:
                raise AbridgedError(f"llama.cpp runs no {config.model_type} with {fault}")

    def describe(self, writer: GGUFWriter, config: Any, name: str, layers: LayerSizes | None = None) -> None:
        """Write the sizes of a model called `name`; `layers` are those that differ by layer, of a LLaMA."""
        writer.add_name(name)
        writer.add_quantized_by("abridged")
        writer.add_quantization_version(2)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads if layers is None else layers.heads)
        writer.add_vocab_size(config.vocab_size)
        self.add_sizes(writer, config, layers)


def _gpt2_faults(config: Any) -> dict[str, bool]:
    return {
        f"activation {config.activation_function}": config.activation_function not in _TANH_GELU,
        "attention that is not scaled by its width": not config.scale_attn_weights,
        "attention scaled by layer": config.scale_attn_by_inverse_layer_idx,
    }


def _gpt2_sizes(writer: GGUFWriter, config: Any, layers: LayerSizes | None) -> None:
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _llama_faults(config: Any) -> dict[str, bool]:
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        f"activation {config.hidden_act}": config.hidden_act != "silu",
        "biases": config.attention_bias or config.mlp_bias,
        f"{rope.get('rope_type')} rotary positions": rope.get("rope_type", "default") != "default",
    }


def head_size(config: Any) -> int:
    """Columns of one of LLaMA's heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _llama_sizes(writer: GGUFWriter, config: Any, layers: LayerSizes | None) -> None:
    head = head_size(config)
    writer.add_feed_forward_length(config.intermediate_size if layers is None else layers.inner)
    writer.add_head_count_kv(config.num_key_value_heads if layers is None else layers.groups)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_freq_base(float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)))


def _bert_faults(config: Any) -> dict[str, bool]:
    heads = [name for name in config.architectures or [] if name not in ("BertModel", _LABELLER)]
    return {
        f"activation {config.hidden_act}": config.hidden_act != "gelu",
        f"the head of a {', '.join(heads)}": bool(heads),
    }


def _bert_sizes(writer: GGUFWriter, config: Any, layers: LayerSizes | None) -> None:
    import gguf

    labels = _LABELLER in (config.architectures or [])
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if labels else gguf.PoolingType.MEAN)
    writer.add_token_type_count(config.type_vocab_size)
    if labels:
        writer.add_classifier_output_labels([config.id2label[i] for i in range(config.num_labels)])


def _bert_notes(config: Any) -> list[str]:
    return [
        "llama.cpp gives every token the first token type: answers to pairs of texts differ from this model's, and "
        "those to single texts do not"
    ]


_BERT_NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
    "pooler.dense": "cls",
}

GGUF_FAMILIES = {
    "gpt2": GgufFamily(
        names={
            "transformer.wte": "token_embd",
            "transformer.wpe": "position_embd",
            "transformer.ln_f": "output_norm",
            "transformer.h.{}.ln_1": "blk.{}.attn_norm",
            "transformer.h.{}.attn.c_attn": "blk.{}.attn_qkv",
            "transformer.h.{}.attn.c_proj": "blk.{}.attn_output",
            "transformer.h.{}.ln_2": "blk.{}.ffn_norm",
            "transformer.h.{}.mlp.c_fc": "blk.{}.ffn_up",
            "transformer.h.{}.mlp.c_proj": "blk.{}.ffn_down",
        },
        faults=_gpt2_faults,
        add_sizes=_gpt2_sizes,
    ),
    "llama": GgufFamily(
        names={
            "model.embed_tokens": "token_embd",
            "model.norm": "output_norm",
            "lm_head": "output",
            "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
            "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
            "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
            "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
            "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
            "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
            "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
            "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
            "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
        },
        faults=_llama_faults,
        add_sizes=_llama_sizes,
    ),
    "bert": GgufFamily(
        names=_BERT_NAMES
        | {f"bert.{ours}": theirs for ours, theirs in _BERT_NAMES.items()}
        | {"classifier": "cls.output"},
        faults=_bert_faults,
        add_sizes=_bert_sizes,
        plain=("token_types",),
        # of a bare encoder, llama.cpp pools by the mean
        unread=lambda config: () if _LABELLER in (config.architectures or []) else ("pooler.dense",),
        notes=_bert_notes,
    ),
}

"""llama.cpp's architectures: what it must be told of a model, and which values it wants otherwise than transformers.

The `gguf` package names the tensors. What it does not know stands in the table below, read off llama.cpp's own
converter (conversion/*.py) and loader (src/models/*.cpp) and checked in the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from abridged.core.errors import AbridgedError

if TYPE_CHECKING:
    from gguf import GGUFWriter

Order = Callable[[Any, int], Tensor]
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
_LABELLER = "BertForSequenceClassification"


def head_size(config: Any) -> int:
    """Columns of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _pairs(config: Any, rows: int) -> Tensor:
    """Rows of Q or K in the order in which llama.cpp turns pairs: neighbours, not halves of a head."""
    return torch.arange(rows).view(-1, 2, head_size(config) // 2).transpose(1, 2).reshape(-1)


def _by_matrix(config: Any, rows: int) -> Tensor:
    """Rows of a fused QKV that goes head by head: all of Q, all of K, all of V."""
    return torch.arange(rows).view(config.num_attention_heads, 3, -1).transpose(0, 1).reshape(-1)


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp for one of transformers' model types.

    Attributes:
        name: llama.cpp's.
        activations: of feed-forward parts, that it computes (GELU always by its tanh approximation).
        sizes: metadata beyond what all have: {key of `GGUFWriter.add_…`: value}.
        faults: of a configuration, what llama.cpp would run otherwise, and whether it is there.
        rows: for kinds of tensors (`gguf.MODEL_TENSOR`), the order in which their rows are written.
        norm_offset: what is added to the weights of norms.
        rope: kinds of rotary scaling that it runs.
        biases: kinds of tensors whose biases it reads; None: all.
        windows: whether it runs sliding windows; where not, the context is cut to one window.
        by_layer: the architecture that reads other sizes for each layer, if there is one.
        classes: ends of the names of model classes whose head it runs.
        called: our names of modules that `gguf` knows under others.
        unread: modules of a model without a head that it does not run.
        notes: what a person should know of a model's file.
    """

    name: str
    activations: tuple[str, ...] = ("silu",)
    sizes: Callable[[Any], dict[str, Any]] = lambda config: {}
    faults: Callable[[Any], dict[str, bool]] = lambda config: {}
    rows: Mapping[str, Order] = field(default_factory=dict)
    norm_offset: float = 0.0
    rope: tuple[str, ...] = ("linear", "yarn")
    biases: tuple[str, ...] | None = ("ATTN_Q", "ATTN_K", "ATTN_V")
    windows: bool = False
    by_layer: str | None = None
    classes: tuple[str, ...] = ("ForCausalLM", "LMHeadModel")
    called: dict[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self, model: Any) -> None:
        """Raise AbridgedError for a head or a configuration that llama.cpp runs otherwise."""
        config, name = model.config, type(model).__name__
        kind = _rope(config).get("rope_type", "default")
        faults = {
            f"the head of a {name}": not name.endswith(self.classes),
            f"activation {_activation(config)}": _activation(config) not in self.activations,
            f"{kind} rotary positions": kind not in ("default", *self.rope),
            **self.faults(config),
        }
        for fault, found in faults.items():
            if found:
                raise AbridgedError(f"llama.cpp runs no {config.model_type} with {fault}")

    def place(self, model: Any, names: Any, path: str) -> tuple[str, str] | None:
        """(kind of tensor, llama.cpp's name) of the module at `path`, by gguf's map of names; None: it is not run.

        Raises AbridgedError where llama.cpp has no name for it.
        """
        prefix = model.base_model_prefix
        bare = path.removeprefix(f"{prefix}.")
        if bare in self.unread and model.base_model is model:
            return None
        known = self.called.get(bare)
        for name in (known,) if known else (path, bare, f"{prefix}.{path}"):
            if (found := names.get_type_and_name(name)) is not None:
                return found[0].name, found[1]
        raise AbridgedError(f"llama.cpp has no place for {path} in a {model.config.model_type}")

    def names(self, config: Any) -> Any:
        """gguf's map from names of modules to those of llama.cpp."""
        import gguf

        key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        return gguf.get_tensor_name_map(key, max(config.num_hidden_layers, getattr(config, "num_decoder_layers", 0)))

    def describe(self, writer: GGUFWriter, config: Any, given: Mapping[str, Any] | None = None) -> list[str]:
        """Write a model's sizes, and say what llama.cpp runs otherwise; `given`: what its config does not say, such as
        sizes that differ by layer."""
        context: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 512)
        window, notes = _window(config), list(self.notes)
        if window is not None and window < context and not self.windows:
            context = window
            notes.append(f"llama.cpp runs no sliding window here: the file's context is one window, {window} tokens")
        inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None)
        sizes: dict[str, Any] = {
            "context_length": context,
            "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers,
            "feed_forward_length": inner or getattr(config, "n_inner", None) or 4 * config.hidden_size,
            "head_count": config.num_attention_heads,
            "head_count_kv": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "vocab_size": config.vocab_size,
            "layer_norm_rms_eps": getattr(config, "rms_norm_eps", None),
            "layer_norm_eps": getattr(config, "layer_norm_eps", getattr(config, "layer_norm_epsilon", None)),
        }
        if window is not None and self.windows:
            sizes["sliding_window"] = window
            sizes["sliding_window_pattern"] = [kind == "sliding_attention" for kind in config.layer_types]
        if _rope(config):
            sizes |= _rope_sizes(config)
        for key, value in {**sizes, **self.sizes(config), **(given or {})}.items():
            if value is not None:
                getattr(writer, f"add_{key}")(value)
        return notes


def _activation(config: Any) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function", "feed_forward_proj")
    return str(next(getattr(config, name) for name in names if getattr(config, name, None)))


def _window(config: Any) -> int | None:
    """Tokens that a layer sees, where one does not see all."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds and "sliding_attention" not in kinds else getattr(config, "sliding_window", None)


def _rope(config: Any) -> dict[str, Any]:
    """Parameters of the rotary positions, in layers that see all; empty where there are none."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _rope_sizes(config: Any) -> dict[str, Any]:
    import gguf

    rope, local = _rope(config), config.rope_parameters.get("sliding_attention", {})
    size, kind = head_size(config), rope.get("rope_type", "default")
    scaling = {"linear": "LINEAR", "yarn": "YARN", "longrope": "LONGROPE"}.get(kind)
    sizes = {
        "key_length": size,
        "value_length": size,
        "rope_dimension_count": int(size * rope.get("partial_rotary_factor", 1.0)),
        "rope_freq_base": float(rope.get("rope_theta", 10_000.0)),
        "rope_freq_base_swa": local.get("rope_theta"),
        "rope_scaling_type": scaling and gguf.RopeScalingType[scaling],
        "rope_scaling_orig_ctx_len": scaling and rope.get("original_max_position_embeddings"),
    }
    if kind in ("linear", "yarn"):
        sizes["rope_scaling_factor"] = float(rope["factor"])
    if kind == "yarn":
        sizes["rope_scaling_yarn_beta_fast"] = float(rope.get("beta_fast") or 32)
        sizes["rope_scaling_yarn_beta_slow"] = float(rope.get("beta_slow") or 1)
    if kind == "longrope":
        sizes["rope_scaling_attn_factors"] = _rope_function(config)[1]
    return sizes


def rope_tensors(config: Any) -> dict[str, Tensor]:
    """Tensors of the file for rotary positions that are scaled by pair: LLaMA 3's and Phi-3's."""
    rope = _rope(config)
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{name}.weight": torch.tensor(rope[f"{name}_factor"]) for name in ("long", "short")}
    if rope.get("rope_type") == "llama3":
        frequencies = _rope_function(config)[0]
        pairs = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float32) / (2 * len(frequencies))
        return {"rope_freqs.weight": 1.0 / (rope["rope_theta"] ** pairs * frequencies)}
    return {}


def _rope_function(config: Any) -> Any:
    """(frequencies, factor of attention) of scaled rotary positions, as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[_rope(config)["rope_type"]](config, torch.device("cpu"))


def _scale_of_heads(config: Any, layers: int) -> dict[str, bool]:
    """Gemma's: llama.cpp knows the one model with another scale by its number of layers."""
    largest = config.num_hidden_layers == layers
    wanted = config.hidden_size // config.num_attention_heads if largest else head_size(config)
    return {"attention scaled otherwise than by its heads' width": config.query_pre_attn_scalar != wanted}


def _untied(config: Any) -> dict[str, bool]:
    return {"a head of its own": not config.tie_word_embeddings}


def _tied(config: Any) -> dict[str, bool]:
    return {"a head tied to its embedding": bool(config.tie_word_embeddings)}


def _bert_sizes(config: Any) -> dict[str, Any]:
    import gguf

    labels = _LABELLER in (config.architectures or [])
    return {
        "causal_attention": False,
        "pooling_type": gguf.PoolingType.RANK if labels else gguf.PoolingType.MEAN,
        "token_type_count": config.type_vocab_size,
        "classifier_output_labels": [config.id2label[i] for i in range(config.num_labels)] if labels else None,
    }


_LLAMA_ROWS = {"ATTN_Q": _pairs, "ATTN_K": _pairs}
_LLAMA_ROPE = ("linear", "yarn", "llama3")

ARCHITECTURES = {
    "bert": Architecture(
        "bert",
        activations=("gelu",),
        sizes=_bert_sizes,
        faults=lambda config: {
            "a causal mask": config.is_decoder,
            "attention across": config.add_cross_attention,
            "relative positions": getattr(config, "position_embedding_type", None) not in (None, "absolute"),
            "no token types": config.type_vocab_size < 1,
        },
        biases=None,
        classes=("BertModel", _LABELLER),
        called={"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"},
        unread=("pooler.dense",),  # of a bare encoder, llama.cpp pools by the mean
        notes=(
            "llama.cpp gives every token the first token type: answers to pairs of texts differ from this model's, "
            "and those to single texts do not",
        ),
    ),
    "gemma": Architecture("gemma", _TANH_GELU, faults=_untied, norm_offset=1.0),
    "gemma2": Architecture(
        "gemma2",
        _TANH_GELU,
        sizes=lambda config: {
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        },
        faults=lambda config: {
            "no soft caps": not (config.attn_logit_softcapping and config.final_logit_softcapping),
            **_scale_of_heads(config, layers=46),
            **_untied(config),
        },
        norm_offset=1.0,
        windows=True,
    ),
    "gemma3_text": Architecture(
        "gemma3",
        _TANH_GELU,
        sizes=lambda config: {"final_logit_softcapping": config.final_logit_softcapping},
        faults=lambda config: {
            "soft caps in attention": bool(config.attn_logit_softcapping),
            "attention in both directions": bool(config.use_bidirectional_attention),
            **_scale_of_heads(config, layers=62),
        },
        norm_offset=1.0,
        windows=True,
    ),
    "gpt2": Architecture(
        "gpt2",
        _TANH_GELU,
        faults=lambda config: {
            "attention that is not scaled by its width": not config.scale_attn_weights,
            "attention scaled by layer": config.scale_attn_by_inverse_layer_idx,
        },
        biases=None,
    ),
    "gpt_neox": Architecture(
        "gptneox",
        ("gelu", *_TANH_GELU),
        sizes=lambda config: {"parallel_residual": config.use_parallel_residual},
        faults=lambda config: {"no biases in attention": not config.attention_bias, **_tied(config)},
        rows={"ATTN_QKV": _by_matrix},
        biases=None,
    ),
    "granite": Architecture(
        "granite",
        sizes=lambda config: {
            "attention_scale": config.attention_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling,
        },
        rows=_LLAMA_ROWS,
        rope=_LLAMA_ROPE,
        biases=None,
    ),
    "llama": Architecture("llama", rows=_LLAMA_ROWS, rope=_LLAMA_ROPE, biases=None, by_layer="deci"),
    "mistral": Architecture("llama", rows=_LLAMA_ROWS, rope=_LLAMA_ROPE, biases=None, by_layer="deci"),
    "olmo2": Architecture("olmo2", faults=_tied),
    "phi3": Architecture("phi3", rope=("longrope",), biases=()),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "smollm3": Architecture(
        "smollm3",
        faults=lambda config: {
            "rotary positions elsewhere than in three of four layers": any(
                bool(turned) == ((layer + 1) % 4 == 0) for layer, turned in enumerate(config.no_rope_layers)
            )
        },
        rows=_LLAMA_ROWS,
    ),
    "t5": Architecture(
        "t5",
        activations=("relu", "gated-gelu"),
        sizes=lambda config: {
            "decoder_block_count": config.num_decoder_layers,
            "key_length": config.d_kv,
            "value_length": config.d_kv,
            "layer_norm_rms_eps": config.layer_norm_epsilon,
            "relative_attn_buckets_count": config.relative_attention_num_buckets,
            "decoder_start_token_id": getattr(config, "decoder_start_token_id", config.pad_token_id),
        },
        faults=lambda config: {
            "more layers in its decoder than in its encoder": config.num_decoder_layers > config.num_layers
        },
        classes=("ForConditionalGeneration",),
    ),
}
ARCHITECTURES["mt5"] = ARCHITECTURES["t5"]
"""transformers' model types that llama.cpp runs, as far as the engine was asked."""

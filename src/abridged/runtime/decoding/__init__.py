"""One token after another with little between the kernels: what a packed model's `forward` does in `generate`.

Hugging Face's modules cost more time at each token than the packed weights do. So a step of one token, the plain case
of generation on a CPU, goes straight from kernel to kernel, with keys and values appended in place; everything else
(prompts, padding, training, tracing, hooks, other devices) goes the stock way. Both give the same logits but for
rounding, and both keep the same cache, so they may take turns.
"""

from __future__ import annotations

import inspect
import weakref
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache

from abridged.models import is_encoder_decoder
from abridged.runtime import micro_batches, ops
from abridged.runtime.attention import ON_KERNELS
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.modules import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable

    from abridged.runtime.decoding.base import Steps

#: transformers' `model_type` -> the module whose `Steps` knows such a model.
_FAMILIES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "llama"}

#: What `forward` may be given in a step; anything else that is not None or False goes the stock way.
_KNOWN = {
    "input_ids",
    "past_key_values",
    "attention_mask",
    "position_ids",
    "use_cache",
    "return_dict",
    "logits_to_keep",
}

#: transformers' feed-forward modules -> their activation, and the layer that reads it.
_FEED_FORWARD = {
    "GPT2MLP": ("act", "c_proj"),
    "BartEncoderLayer": ("activation_fn", "fc2"),
    "BartDecoderLayer": ("activation_fn", "fc2"),
    "MBartEncoderLayer": ("activation_fn", "fc2"),
    "MBartDecoderLayer": ("activation_fn", "fc2"),
    "BertLayer": ("intermediate.intermediate_act_fn", "output.dense"),
    "RobertaLayer": ("intermediate.intermediate_act_fn", "output.dense"),
}
#: transformers' activations -> `ops.INPUT_FUNCTIONS`.
_GELU = {"NewGELUActivation": "gelu_tanh", "GELUActivation": "gelu"}


class Forward:
    """Stands in for a model's `forward`."""

    def __init__(self, model: Any, make: Callable[[Any], Steps]) -> None:
        self.model, self._make = model, make
        self._steps: Steps | None = None
        self._cache: Callable[[], Any] = lambda: None
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args and self._is_step(kwargs):
            cache = kwargs["past_key_values"]
            steps = self._steps if self._going_on(cache) else self._prepared()
            if steps is not None:
                self._cache = weakref.ref(cache)
                return steps(kwargs["input_ids"], cache)
        return type(self.model).forward(self.model, *args, **kwargs)

    def _is_step(self, kwargs: dict[str, Any]) -> bool:
        ids, cache = kwargs.get("input_ids"), kwargs.get("past_key_values")
        if ids is None or cache is None or ids.shape[-1] != 1 or ids.dim() != 2 or kwargs.get("use_cache") is False:
            return False
        if any(value is not None and value is not False for key, value in kwargs.items() if key not in _KNOWN):
            return False
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.model.training:
            return False
        config = self.model.config
        if config.output_attentions or config.output_hidden_states or kwargs.get("return_dict") is False:
            return False
        length = Appending.length(cache)
        if not length or cache.layers[0].keys.shape[0] != ids.shape[0]:
            return False
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        plain = mask is None or (mask.dim() == 2 and mask.shape[1] == length + 1 and bool(mask.all()))
        return plain and (positions is None or bool((positions == length).all()))

    def _going_on(self, cache: Any) -> bool:
        """Whether this is the text of the last step, during which nobody is taken to change the model."""
        return self._steps is not None and self._steps.possible and self._cache() is cache

    def halve(self, cache: Any) -> None:
        """Keep a cache in bf16, whose reading takes half the time, where nothing but steps will follow."""
        steps = self._prepared()
        if steps is None or not Appending.length(cache) or steps.quantized_attention:
            return
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys.to(torch.bfloat16), layer.values.to(torch.bfloat16)

    def _prepared(self) -> Steps | None:
        """The steps, made anew where the model has been moved or changed; None where it cannot be stepped through."""
        if self._steps is None or not self._steps.intact():
            self._steps = None
            if ops.kernels() is not None:
                self._steps = self._make(self.model)
        return self._steps if self._steps is not None and self._steps.possible else None


def install(model: Any) -> None:
    """Let a packed model on the CPU use what the compiled kernels have: steps of one token, GELU on the way, attention,
    beams, and large batches in portions."""
    family = _FAMILIES.get(model.config.model_type)
    if ops.kernels() is None or getattr(model, "hf_device_map", None):
        return
    fuse_gelu(model)
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ON_KERNELS)
    micro_batches.install(model)
    if is_encoder_decoder(model):
        model._reorder_cache = reorder_beams
    if family is not None and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        make = import_module(f"abridged.runtime.decoding.{family}").Steps
        model.forward = Forward(model, make)


def fuse_gelu(model: nn.Module) -> None:
    """Leave GELU to the layer after it: as a pass of its own it takes as long as a good part of that layer."""
    for module in model.modules():
        if type(module).__name__ not in _FEED_FORWARD:
            continue
        activation, after = _FEED_FORWARD[type(module).__name__]
        name = _GELU.get(type(module.get_submodule(activation)).__name__)
        layer = module.get_submodule(after)
        if name is not None and isinstance(layer, PackedLinear) and layer.input_quantizer is not None:
            module.set_submodule(activation, nn.Identity())
            layer.input_function = name


def reorder_beams(cache: Any, beams: Tensor) -> Any:
    """Let a cache follow its beams (B,), as `generate` asks in beam search.

    The beams of a document share what the decoder sees of it, so that keys and values across stay as they are;
    transformers copies them at every token.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    own.reorder_cache(beams)
    return cache

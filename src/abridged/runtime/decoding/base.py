"""What the families' steps share: linear layers ready to be called, and the check that the model is still the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from abridged.runtime import ops
from abridged.runtime.attention import attention
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule
from abridged.runtime.removed import NoAttention, NoMatrix

Linear = Callable[[Tensor], Tensor]


class Steps:
    """One-token steps through a model; a family says in `step` how a token passes its layers.

    `possible` is False for a model with blocks taken out, or not wholly on the CPU in FP32 or bf16. In bf16 the cache
    and attention have that type, and what lies between the kernels is FP32.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules = list(model.modules())
        self._places = [(m._modules, name, child) for m in self.modules for name, child in m._modules.items()]
        self._pointers = [(p, p.data_ptr()) for p in model.parameters()]
        self.quantized_attention = any(getattr(m, "attention_quantizers", None) is not None for m in self.modules)
        self._threads = torch.get_num_threads()
        # `model.dtype` may be that of the scales of packed weights, which stay FP32
        plain = (p for m in self.modules if not isinstance(m, PackedModule) for p in m._parameters.values())
        self.dtype = next((p.dtype for p in plain if p is not None and p.is_floating_point()), torch.float32)
        served = (torch.float32, torch.bfloat16, torch.uint8)
        whole = not any(isinstance(m, (NoAttention, NoMatrix)) for m in self.modules)
        self.possible = whole and all(p.device.type == "cpu" and p.dtype in served for p in model.parameters())
        if self.possible:
            self.prepare()

    def prepare(self) -> None:
        """Look up the model's parts once."""
        raise NotImplementedError

    def step(self, ids: Tensor, layers: list[Any], length: int) -> Tensor:
        """Logits (B, vocabulary) after the token ids (B,), the `length` tokens before them being in the cache."""
        raise NotImplementedError

    def __call__(self, ids: Tensor, cache: Any) -> CausalLMOutputWithPast:
        logits = self.step(ids[:, 0], cache.layers, Appending.length(cache))
        return CausalLMOutputWithPast(logits=logits[:, None].to(self.dtype), past_key_values=cache)

    def intact(self) -> bool:
        """Whether nothing was moved, cast, replaced or hooked since `prepare`."""
        return (
            self._threads == torch.get_num_threads()
            and all(children.get(name) is child for children, name, child in self._places)
            and not any(m._forward_hooks or m._forward_pre_hooks for m in self.modules)
            and all(p.data_ptr() == pointer for p, pointer in self._pointers)
        )

    def linear(self, module: nn.Module) -> Linear:
        """`module` as a function of x (B, columns), whose result is overwritten at the next call."""
        if isinstance(module, PackedLinear) and module.input_quantizer is not None and module.input_quantizer.bits > 1:
            kernels = ops.kernels()
            quantizer = module.input_quantizer
            bias = None if module.bias is None else module.bias.float()
            operands = (module.weight_scale, bias, *quantizer.operands(), quantizer.bits, *module.storage)
            operands = (*operands, module.input_function)
            if kernels is not None and kernels.serves_linear(
                module.weight_scale, module.weight_scale.numel(), *module.storage
            ):
                return kernels.prepared_linear(module.weight, *operands)
        if self.dtype != torch.float32:
            return lambda x: module(x.to(self.dtype)).float()
        return module

    def embedding(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """`module` as a function of ids (B,)."""
        kernels = ops.kernels()
        if isinstance(module, PackedEmbedding) and kernels is not None:
            weight, scale, storage = module.weight, module.weight_scale, module.storage
            return lambda ids: kernels.embedding(ids, weight, scale, *storage)
        return lambda ids: module(ids).float()


def attend(module: Any, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Attention of one query (B, heads, 1, d) to keys and values (B, key heads, S, d): (B, heads * d) in FP32."""
    if getattr(module, "attention_quantizers", None) is not None:
        return attention(module, query.to(keys.dtype), keys, values, None, scaling=scaling)[0].flatten(1).float()
    kernels = ops.kernels()
    y = None if kernels is None else kernels.attend(query, keys, values, scaling)
    if y is None:
        grouped = query.shape[1] != keys.shape[1]
        query = query.to(keys.dtype)
        y = F.scaled_dot_product_attention(query, keys, values, scale=scaling, enable_gqa=grouped).float()
    return y.flatten(1)

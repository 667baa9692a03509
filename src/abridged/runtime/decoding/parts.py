"""Modules as functions for many calls: where the compiled kernels have a shorter way than the module, that one. Rotary
positions: the model's own cosines and sines in the one order that a step turns heads by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.runtime import kernels
from abridged.runtime.attention import attention, quantizers_of
from abridged.runtime.decoding.spec import POSITIONS, STATES, Norm, Rotary
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule

Function = Callable[[Tensor], Tensor]


def computes_in(model: nn.Module) -> torch.dtype:
    """The type that a model computes in; `model.dtype` may be that of the scales of packed weights, which stay FP32."""
    plain = (p for m in model.modules() if not isinstance(m, PackedModule) for p in m._parameters.values())
    return next((p.dtype for p in plain if p is not None and p.is_floating_point()), torch.float32)


def served(module: Any) -> bool:
    """Whether a module is a packed matrix whose products the compiled kernels compute, of inputs in FP32."""
    compiled = kernels.kernels()
    if not isinstance(module, PackedLinear) or compiled is None:
        return False
    rounding = module.rounding()
    return compiled.serves_linear(torch.float32, module.storage, rounding is not None) and (
        rounding is None or rounding.bits > 1
    )


def linear(module: Any, dtype: torch.dtype) -> Function:
    """`module` as a function of x (B, columns) FP32, whose result is overwritten at the next call.

    dtype: what the model computes in.
    """
    compiled = kernels.kernels()
    if compiled is not None and served(module):
        bias = None if module.bias is None else module.bias.float()
        return compiled.prepared_linear(module.held(), bias, module.rounding(), module.input_function)
    if dtype != torch.float32:
        return lambda x: module(x.to(dtype)).float()
    return module


def embedding(module: nn.Module) -> Function:
    """`module` as a function of ids (B,), whose result (B, columns) FP32 is the caller's."""
    compiled = kernels.kernels()
    if isinstance(module, PackedEmbedding) and compiled is not None:
        held, factor = module.held(), module.embed_scale  # whose memory the model keeps: see `intact`
        if factor == 1.0:
            return lambda ids: compiled.embedding(held, ids)
        return lambda ids: compiled.embedding(held, ids).mul_(factor)
    return lambda ids: module(ids).float()


def table_row(module: nn.Module) -> Callable[[int], Tensor]:
    """Row (columns,) FP32 of a table of positions by its number, whatever the module itself makes of a position."""
    if isinstance(module, nn.Embedding):
        weight = module.weight.detach()
        return lambda row: weight[row].float()
    look_up = embedding(module)
    return lambda row: look_up(torch.tensor([row]))[0]


def affine(module: Any, spec: Norm) -> tuple[Tensor, Tensor | None]:
    """What a norm multiplies by, and what it adds, (columns,) FP32; None where it adds nothing."""
    bias = getattr(module, "bias", None)
    return module.weight.detach().float() + spec.offset, None if bias is None else bias.detach().float()


def norm(module: Any, spec: Norm) -> Function:
    """A norm as a function of x (..., columns) FP32, whose result is the caller's."""
    (weight, bias), eps = affine(module, spec), spec.eps
    shape = tuple(weight.shape)
    if spec.centred:
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    if bias is not None:
        return lambda x: torch.rms_norm(x, shape, weight, eps).add_(bias)
    return lambda x: torch.rms_norm(x, shape, weight, eps)


ACTIVATIONS: dict[str, Function] = {
    "identity": lambda x: x,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square_(),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
}
"""What may stand between the matrices of a feed-forward part."""


def attend(module: Any, scaling: float, softcap: float | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention of one query (B, heads, 1, d) to keys and values (B, key heads, S, d): (B, heads * d) in FP32."""
    compiled = kernels.kernels()
    if quantizers_of(module) is not None or softcap is not None:

        def exact(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            query = query.to(keys.dtype)
            return attention(module, query, keys, values, None, scaling, softcap=softcap)[0].flatten(1).float()

        return exact

    def plain(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        y = None if compiled is None else compiled.attend(query, keys, values, scaling)
        if y is None:
            grouped = query.shape[1] != keys.shape[1]
            query = query.to(keys.dtype)
            y = F.scaled_dot_product_attention(query, keys, values, scale=scaling, enable_gqa=grouped).float()
        return y.flatten(1)

    return plain


def waves(cos: Tensor, sin: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (…, width), as `turned` takes them, of what the model's module gave."""
    if rotary.style == "half":
        half = sin.shape[-1] // 2
        return cos, torch.cat((-sin[..., :half], sin[..., half:]), -1)
    if not rotary.repeated:
        half = cos.shape[-1] // 2
        cos, sin = (t[..., :half].repeat_interleave(2, -1) for t in (cos, sin))
    sign = torch.tensor([-1.0, 1.0]).repeat(sin.shape[-1] // 2)
    return cos, sin * sign


def turned(x: Tensor, cos: Tensor, sin: Tensor, style: str) -> Tensor:
    """Heads x (…, d), the first numbers of each turned, as many as there are cosines."""
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((turned(x[..., :width], cos, sin, style), x[..., width:]), -1)
    if style == "half":
        first, second = x.chunk(2, -1)
        other = torch.cat((second, first), -1)
    else:
        other = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos).addcmul_(other, sin)


class Turns:
    """A model's rotary module, called for one position."""

    def __init__(self, module: Any, rotary: Rotary) -> None:
        self.module, self.rotary = module, rotary
        self.named = [(n, v) for n, v in rotary.arguments if n is not None]
        self.plain = [v for n, v in rotary.arguments if n is None]

    def __call__(self, x: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (width,); x (B, columns) says the type."""
        given = {STATES: x, POSITIONS: torch.tensor([[position]])}
        plain = [given.get(v, v) if isinstance(v, str) else v for v in self.plain]
        cos, sin = self.module(*plain, **{n: given.get(v, v) if isinstance(v, str) else v for n, v in self.named})
        return waves(cos[0, 0], sin[0, 0], self.rotary)

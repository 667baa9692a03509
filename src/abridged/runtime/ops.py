"""The torch ops that work on packed weights, under ``torch.ops.abridged``: what torch's tracers see of a packed layer.

Their values are those of the backend that serves the call. Gradients go to inputs and biases, by the reference and
through roundings as in training; codes and scales have none. An op takes tensors and plain values alone, so that a
weight's `Storage` comes as its `text`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.runtime.activations import Rounding, apply_function, function_backward
from abridged.runtime.backends import Reference, choose
from abridged.runtime.weight import PackedWeight
from abridged.storage.matrix import Storage

LIBRARY = torch.library.Library("abridged", "DEF")
LIBRARY.define(
    "packed_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, str function, str storage) "
    "-> Tensor"
)
LIBRARY.define(
    "quantized_linear(Tensor x, Tensor codes, Tensor scales, Tensor? zeros, Tensor? bias, int input_bits, "
    "Tensor? input_scale, Tensor? input_zero_point, str function, str storage) -> Tensor"
)
LIBRARY.define("packed_backward(Tensor grad, Tensor codes, Tensor scales, Tensor? zeros, str storage) -> Tensor")
LIBRARY.define("packed_embedding(Tensor ids, Tensor codes, Tensor scales, Tensor? zeros, str storage) -> Tensor")


def linear(
    weight: PackedWeight,
    x: Tensor,
    bias: Tensor | None = None,
    rounding: Rounding | None = None,
    function: str = "identity",
) -> Tensor:
    """``round(function(x)) W^T + bias`` (..., rows), in the type of x (..., columns); see `Backend.linear`."""
    operands, text = (x, *weight.tensors, bias), weight.storage.text
    if rounding is None:
        y: Tensor = torch.ops.abridged.packed_linear(*operands, function, text)
    else:
        y = torch.ops.abridged.quantized_linear(*operands, *rounding, function, text)
    return y


def embedding(weight: PackedWeight, ids: Tensor) -> Tensor:
    """Rows of ids (...) as (..., columns) FP32; only those are read."""
    y: Tensor = torch.ops.abridged.packed_embedding(ids, *weight.tensors, weight.storage.text)
    return y


def _packed_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    function: str,
    storage: str,
) -> Tensor:
    return _linear(x, PackedWeight(codes, scales, Storage.parse(storage), zeros), bias, None, function)


def _quantized_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    input_bits: int,
    input_scale: Tensor | None,
    input_zero_point: Tensor | None,
    function: str,
    storage: str,
) -> Tensor:
    rounding = Rounding(input_bits, input_scale, input_zero_point)
    return _linear(x, PackedWeight(codes, scales, Storage.parse(storage), zeros), bias, rounding, function)


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, rounding: Rounding | None, function: str) -> Tensor:
    backend = choose(weight, x, rounding)
    return backend.linear(backend.prepare(weight), x, bias, rounding, function)


def _packed_backward(grad: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, storage: str) -> Tensor:
    reference = Reference()
    return reference.backward(reference.prepare(PackedWeight(codes, scales, Storage.parse(storage), zeros)), grad)


def _packed_embedding(ids: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, storage: str) -> Tensor:
    weight = PackedWeight(codes, scales, Storage.parse(storage), zeros)
    backend = choose(weight, ids)
    return backend.embedding(backend.prepare(weight), ids)


def _linear_fake(x: Tensor, *operands: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], Storage.parse(str(operands[-1])).rows))


def _backward_fake(grad: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, storage: str) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], Storage.parse(storage).columns))


def _embedding_fake(ids: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None, storage: str) -> Tensor:
    return scales.new_empty((*ids.shape, Storage.parse(storage).columns), dtype=torch.float32)


for _name, _implementation, _fake in (
    ("packed_linear", _packed_linear, _linear_fake),
    ("quantized_linear", _quantized_linear, _linear_fake),
    ("packed_backward", _packed_backward, _backward_fake),
    ("packed_embedding", _packed_embedding, _embedding_fake),
):
    LIBRARY.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"abridged::{_name}", _fake, lib=LIBRARY)


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scales, zeros, _, *rounding, function, storage = inputs
    _refuse_gradients(scales)
    ctx.rounding, ctx.function, ctx.storage = Rounding(*rounding) if rounding else None, function, storage
    is_plain = function == "identity" and (not rounding or rounding[1] is None)
    ctx.save_for_backward(codes, scales, zeros, None if is_plain else x)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *weight, x = ctx.saved_tensors
    to_x = to_bias = None
    if ctx.needs_input_grad[0]:
        to_x = torch.ops.abridged.packed_backward(grad, *weight, ctx.storage)
        if ctx.rounding is not None and x is not None:
            to_x = ctx.rounding.backward(to_x, apply_function(x, ctx.function))
        to_x = function_backward(to_x, x, ctx.function)
    if ctx.needs_input_grad[4]:
        to_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32 if grad.dtype != torch.float64 else None)
    rest = [None] * (len(ctx.needs_input_grad) - 5)
    return to_x, None, None, None, to_bias, *rest


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *weight, ctx.storage = inputs
    _refuse_gradients(weight[1])
    ctx.save_for_backward(*weight)


def _backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    to_grad = torch.ops.abridged.packed_linear(grad, *ctx.saved_tensors, None, "identity", ctx.storage)
    return to_grad, None, None, None, None


def _refuse_gradients(scales: Tensor) -> None:
    """Raise AbridgedError where a weight's scales shall be trained."""
    if scales.requires_grad:
        raise AbridgedError("the scales of packed weights have no gradients: call requires_grad_(False) on them")


_GRADIENTS: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
    ("packed_linear", _keep_linear, _linear_backward),
    ("quantized_linear", _keep_linear, _linear_backward),
    ("packed_backward", _keep_backward, _backward_backward),
    ("packed_embedding", lambda ctx, inputs, output: _refuse_gradients(inputs[2]), lambda ctx, grad: (None,) * 5),
)
for _name, _keep, _back in _GRADIENTS:
    torch.library.register_autograd(f"abridged::{_name}", _back, setup_context=_keep, lib=LIBRARY)

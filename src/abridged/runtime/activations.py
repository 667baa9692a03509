"""Activation quantisers as a stored model has them; training uses the same arithmetic, so values agree bit for bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.core.errors import AbridgedError

SMALLEST_SCALE = 1e-10

INPUT_FUNCTIONS = ("identity", "gelu_tanh", "gelu")
"""What a packed layer can do to its input before it rounds it; the kernels know them by number."""


def check_function(name: str) -> None:
    """Raise AbridgedError unless `name` is a function that a linear layer's input can pass."""
    if name not in INPUT_FUNCTIONS:
        raise AbridgedError(f"no input function {name!r}; known are {', '.join(INPUT_FUNCTIONS)}")


def apply_function(x: Tensor, name: str) -> Tensor:
    """x, or in FP32 (FP64 of that) what becomes of it."""
    check_function(name)
    return x if name == "identity" else F.gelu(_wide(x), approximate=_approximation(name))


def function_backward(grad: Tensor, x: Tensor, name: str) -> Tensor:
    """The gradient for x, in its type, of one for `apply_function(x, name)`."""
    if name == "identity":
        return grad
    found: Tensor = torch.ops.aten.gelu_backward(_wide(grad), _wide(x), approximate=_approximation(name))
    return found.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _approximation(name: str) -> str:
    return "tanh" if name == "gelu_tanh" else "none"


def level_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest integer: (-127, 127) or (0, 255) at 8 bits; at 1 bit (-1, 1), without 0, or (0, 1)."""
    if bits == 1 and symmetric:
        return -1, 1
    return (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def nearest_level(levels: Tensor, low: int, high: int) -> Tensor:
    """`levels` rounded to integers of [low, high], in place; to the sign where the range is one bit's around 0."""
    if (low, high) == (-1, 1):
        return levels.copy_(torch.where(levels < 0, -1.0, 1.0))
    return levels.round_().clamp_(low, high)


def quantize_static(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """(clamp(round(x/scale + zero_point), low, high) - zero_point) * scale in FP32, returned in x's type.

    `x` has any shape, `scale` (1,) FP32; `zero_point` (1,) holds an integer, None means 0. At one bit around 0 it is
    ±scale by the sign (BiT, arXiv:2205.13016, section 3).
    """
    levels = x.to(scale.dtype) / scale
    if zero_point is None:
        return nearest_level(levels, low, high).mul_(scale).to(x.dtype)
    levels = levels.round_().add_(zero_point).clamp_(low, high).sub_(zero_point)
    return levels.mul_(scale).to(x.dtype)


class Rounding(NamedTuple):
    """How an input is rounded to integers of `bits`: by a fixed scale (1,) FP32 and, where the range is not symmetric,
    a zero point (1,) int32; or each token by its own largest value, where there is no scale."""

    bits: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None

    def apply(self, x: Tensor) -> Tensor:
        """x of any shape, rounded, in its type."""
        low, high = level_range(self.bits, self.zero_point is None)
        if self.scale is None:
            return quantize_per_token(x, high)
        return quantize_static(x, self.scale, self.zero_point, low, high)

    def backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient for x of one for `apply(x)`, in its shape and type: straight through, and nothing beyond the
        clip of a fixed scale (PACT, arXiv 1805.06085), as in training."""
        if self.scale is None:
            return grad
        low, high = level_range(self.bits, self.zero_point is None)
        levels = x.to(self.scale.dtype) / self.scale
        if self.zero_point is not None:
            levels += self.zero_point
        return grad.masked_fill((levels <= low) | (levels >= high), 0.0)


class Round(torch.autograd.Function):
    """`Rounding.apply` with the gradient of `Rounding.backward`."""

    @staticmethod
    def forward(ctx, x, bits, scale, zero_point):
        ctx.save_for_backward(x)
        ctx.rounding = Rounding(bits, scale, zero_point)
        return ctx.rounding.apply(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.rounding.backward(grad, *ctx.saved_tensors), None, None, None


def rounded(x: Tensor, rounding: Rounding) -> Tensor:
    """`rounding.apply(x)`, differentiable where somebody asks for that."""
    return Round.apply(x, *rounding) if x.requires_grad else rounding.apply(x)


class StaticActivation(nn.Module):
    """Quantises with a fixed scale: symmetric around 0, or with an integer zero point."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.symmetric = bits, symmetric
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    def _apply(self, fn, recurse=True):
        # A cast of the model (.half(), .to(bfloat16)) moves the scale but leaves it in FP32.
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.scale = scale.to(self.scale.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Quantise x of any shape; the result has its shape and type."""
        return rounded(x, self.rounding())

    def rounding(self) -> Rounding:
        """What it does, as a packed layer takes it."""
        return Rounding(self.bits, self.scale, None if self.symmetric else self.zero_point)

    def describe(self) -> dict[str, Any]:
        return {"kind": "static", "bits": self.bits, "symmetric": self.symmetric}


def quantize_per_token(x: Tensor, top: int) -> Tensor:
    """Each token (last dimension) rounded to -top … top of its own symmetric grid, computed in FP32, in x's type."""
    values = _wide(x)
    scale = values.abs().amax(-1, keepdim=True).div_(top).clamp_min_(SMALLEST_SCALE)
    return (values / scale).round_().mul_(scale).to(x.dtype)


class DynamicActivation(nn.Module):
    """Quantises each token (last dimension) symmetrically by its own largest value; nothing is stored."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Quantise x (..., features); the result has its shape and type."""
        return rounded(x, self.rounding())

    def rounding(self) -> Rounding:
        """What it does, as a packed layer takes it."""
        return Rounding(self.bits)

    def describe(self) -> dict[str, Any]:
        return {"kind": "dynamic", "bits": self.bits}


def build_activation(description: dict[str, Any]) -> StaticActivation | DynamicActivation:
    """The module of a `describe()`; its buffers are loaded afterwards. Raises AbridgedError for anything else."""
    kind, bits = description.get("kind"), description.get("bits")
    if bits not in (1, 4, 8) or (bits == 1 and kind == "dynamic"):
        raise AbridgedError(f"activations are stored in 1, 4 or 8 bits, dynamic ones in 4 or 8, not {bits!r}")
    if kind == "static" and set(description) == {"kind", "bits", "symmetric"}:
        return StaticActivation(bits, bool(description["symmetric"]))
    if kind == "dynamic" and set(description) == {"kind", "bits"}:
        return DynamicActivation(bits)
    raise AbridgedError(f"unknown activation quantiser {description!r}")

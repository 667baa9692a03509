"""Activation quantisers as a stored model has them; training uses the same arithmetic, so values agree bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import AbridgedError

SMALLEST_SCALE = 1e-10


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
        zero_point = None if self.symmetric else self.zero_point
        return quantize_static(x, self.scale, zero_point, *level_range(self.bits, self.symmetric))

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """Scale and zero point, as `ops.quantized_linear` takes them."""
        return self.scale, None if self.symmetric else self.zero_point

    def describe(self) -> dict[str, Any]:
        return {"kind": "static", "bits": self.bits, "symmetric": self.symmetric}


def quantize_per_token(x: Tensor, top: int) -> Tensor:
    """Each token (last dimension) rounded to -top … top of its own symmetric grid, computed in FP32, in x's type."""
    values = x if x.dtype == torch.float64 else x.float()
    scale = values.abs().amax(-1, keepdim=True).div_(top).clamp_min_(SMALLEST_SCALE)
    return (values / scale).round_().mul_(scale).to(x.dtype)


class RoundPerToken(torch.autograd.Function):
    """Rounds each token (last dimension) on its own symmetric grid; the gradient is passed straight through."""

    @staticmethod
    def forward(ctx, x, top):
        return quantize_per_token(x, top)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class DynamicActivation(nn.Module):
    """Quantises each token (last dimension) symmetrically by its own largest value; nothing is stored."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Quantise x (..., features); the result has its shape and type."""
        return RoundPerToken.apply(x, level_range(self.bits, True)[1])

    def operands(self) -> tuple[None, None]:
        """Neither scale nor zero point, as `ops.quantized_linear` takes them."""
        return None, None

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

"""Who computes with packed weights: the torch reference anywhere, compiled kernels on CPUs, Triton's on GPUs, and
whoever registers.

A backend `prepare`s a weight once, which may repack it, and is handed what it made of it at every call. Which one
serves a call is decided in `choose`, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.runtime import kernels
from abridged.runtime.activations import Rounding, apply_function
from abridged.runtime.kernels import Held
from abridged.runtime.weight import PackedWeight

if TYPE_CHECKING:
    from abridged.runtime import triton_kernels

SLICE_WEIGHTS = 1 << 22
"""Weights that the reference dequantises at a time (16 MB in FP32)."""

TRAINED_WEIGHTS = 1 << 20
"""And where something is trained through them, which should not need a matrix of few bits whole: 4 MB."""

FEW_TOKENS = 8
"""Up to so many, inputs that stay as they are meet the codes; of more, it pays to make the matrix first."""


class Backend(Protocol):
    """x is (..., columns) of any floating type, and answers are in it; ids are integers, and rows are FP32."""

    name: str

    def supports(self, weight: PackedWeight, x: Tensor, rounding: Rounding | None = None) -> bool:
        """Whether it can compute with this weight for such an input; ids, for an embedding."""

    def prepare(self, weight: PackedWeight) -> Any:
        """What it wants of the weight at every call. Raises AbridgedError for what does not fit together.

        It is good for as long as codes and scales stay where they are in memory, and is never copied or saved.
        """

    def linear(
        self, handle: Any, x: Tensor, bias: Tensor | None, rounding: Rounding | None = None, function: str = "identity"
    ) -> Tensor:
        """``round(function(x)) W^T + bias`` (..., rows); bias (rows,); function: of `INPUT_FUNCTIONS`."""

    def embedding(self, handle: Any, ids: Tensor) -> Tensor:
        """Rows of ids (...) as (..., columns) FP32. Raises IndexError for an id that is not a row."""


class Reference:
    """Plain torch, on any device, with no more than a slice of the matrix dequantised at a time."""

    name = "reference"

    def supports(self, weight: PackedWeight, x: Tensor, rounding: Rounding | None = None) -> bool:
        return True

    def prepare(self, weight: PackedWeight) -> PackedWeight:
        weight.check()
        return weight

    def linear(
        self,
        handle: PackedWeight,
        x: Tensor,
        bias: Tensor | None,
        rounding: Rounding | None = None,
        function: str = "identity",
        out: Tensor | None = None,
    ) -> Tensor:
        """Written into `out` (..., rows), of x's type, where it is given, by the slices of what is trained."""
        dtype = x.dtype
        x = apply_function(x, function)
        x = (x if rounding is None else rounding.apply(x)).to(dtype)
        bias = None if bias is None else bias.to(dtype)
        rows = handle.storage.rows
        if rows <= _step(handle) and out is None:
            ((_, weight),) = _slices(handle)
            return F.linear(x, weight.to(dtype), bias).to(dtype)  # autocast may have its own
        y = x.new_empty((*x.shape[:-1], rows)) if out is None else out
        for part, weight in _slices(handle, _step(handle) if out is None else _step_trained(handle)):
            y[..., part] = F.linear(x, weight.to(dtype), None if bias is None else bias[part])
            del weight  # before the next one is made
        return y

    def backward(self, handle: PackedWeight, grad: Tensor) -> Tensor:
        """The gradient for x (..., columns), grad W, of one for `linear` (..., rows), in its type."""
        wide = torch.promote_types(grad.dtype, torch.float32)
        x = grad.new_zeros((*grad.shape[:-1], handle.storage.columns), dtype=wide)
        for part, weight in _slices(handle, _step_trained(handle)):
            x += grad[..., part] @ weight.to(grad.dtype)
            del weight
        return x.to(grad.dtype)

    def embedding(self, handle: PackedWeight, ids: Tensor) -> Tensor:
        return handle.rows(ids)


def _step(weight: PackedWeight) -> int:
    """Rows in a slice."""
    return max(1, SLICE_WEIGHTS // weight.storage.columns)


def _step_trained(weight: PackedWeight) -> int:
    """Rows in a slice of what is trained: a quarter of the matrix at most."""
    rows, columns = weight.storage.rows, weight.storage.columns
    return max(1, min(SLICE_WEIGHTS // columns, TRAINED_WEIGHTS // columns, -(-rows // 4)))


def _slices(weight: PackedWeight, step: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix and their weights (n, columns) FP32, so many at a time; no more than a slice."""
    rows, step = weight.storage.rows, step or _step(weight)
    codes, scales, zeros = weight.codes.view(rows, -1), weight.row_scales(), weight.row_zeros()
    for start in range(0, rows, step):
        part = slice(start, start + step)
        yield part, weight.scaled(codes[part], scales[part], None if zeros is None else zeros[part])


class Cpu:
    """The compiled kernels: 8-bit integer products of rounded inputs, FP32 products of others, and embeddings."""

    name = "cpu"

    def supports(self, weight: PackedWeight, x: Tensor, rounding: Rounding | None = None) -> bool:
        compiled = kernels.kernels()
        if compiled is None or not x.is_cpu:
            return False
        if x.dtype.is_floating_point:
            return compiled.serves_linear(x.dtype, weight.storage, rounding is not None)
        return True

    def prepare(self, weight: PackedWeight) -> Held:
        return Held.of(weight)

    def linear(
        self, handle: Held, x: Tensor, bias: Tensor | None, rounding: Rounding | None = None, function: str = "identity"
    ) -> Tensor:
        compiled = kernels.kernels()
        assert compiled is not None
        if rounding is None and x.numel() > FEW_TOKENS * handle.columns and x.shape[-1] == handle.columns:
            return _of_slices(compiled, handle, apply_function(x, function).to(x.dtype), bias)
        if rounding is not None and rounding.bits == 1 and rounding.scale is not None:
            # two values, which rounding to 8 bits by token leaves as they are
            x = rounding.apply(apply_function(x, function)).to(x.dtype)
            rounding, function = Rounding(8), "identity"
        return compiled.linear(handle, x, bias, rounding, function)

    def embedding(self, handle: Held, ids: Tensor) -> Tensor:
        compiled = kernels.kernels()
        assert compiled is not None
        return compiled.embedding(handle, ids)


def _of_slices(compiled: kernels.Kernels, handle: Held, x: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + bias`` of many tokens by torch, for a slice of the matrix at a time."""
    y, step = x.new_empty((*x.shape[:-1], handle.rows)), max(1, SLICE_WEIGHTS // handle.columns)
    for start in range(0, handle.rows, step):
        part = slice(start, min(start + step, handle.rows))
        added = None if bias is None else bias[part].to(x.dtype)
        y[..., part] = F.linear(x, compiled.dense(handle, part, x.dtype), added)
    return y


class Triton:
    """Triton's kernels on CUDA (from Ampere on) and ROCm devices: inputs rounded to any bits, or as they are."""

    name = "triton"

    def supports(self, weight: PackedWeight, x: Tensor, rounding: Rounding | None = None) -> bool:
        if not (_has_tensor_cores(x.device) if x.is_cuda else x.is_cpu and _interprets()) or not _has_triton():
            return False
        from abridged.runtime import triton_kernels

        if x.dtype.is_floating_point:
            return x.dtype in triton_kernels.TYPES and triton_kernels.serves(weight.storage)
        return True

    def prepare(self, weight: PackedWeight) -> triton_kernels.Weight:
        from abridged.runtime import triton_kernels

        return triton_kernels.Weight.of(weight)

    def linear(
        self,
        handle: triton_kernels.Weight,
        x: Tensor,
        bias: Tensor | None,
        rounding: Rounding | None = None,
        function: str = "identity",
    ) -> Tensor:
        with torch.cuda.device_of(x):  # Triton takes the current one
            return handle.linear(x, bias, rounding, function)

    def embedding(self, handle: triton_kernels.Weight, ids: Tensor) -> Tensor:
        with torch.cuda.device_of(ids):
            return handle.embedding(ids)


@cache
def _has_tensor_cores(device: torch.device) -> bool:
    """Whether a device multiplies in bf16 and 8 bits as the kernels do."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    """Whether Triton is there, as it is beside torch's builds for GPUs, and the reference was not asked for."""
    return find_spec("triton") is not None and os.environ.get(kernels.VARIABLE, "auto").lower() != "reference"


@lru_cache(maxsize=1)
def _interprets() -> bool:
    """Whether CPU tensors shall go through Triton's interpreter."""
    return os.environ.get(kernels.VARIABLE, "auto").lower() == "triton"


CPU = Cpu()
BACKENDS: list[Backend] = [CPU, Triton(), Reference()]
"""In order of preference. The last serves everything."""


def choose(weight: PackedWeight, x: Tensor, rounding: Rounding | None = None) -> Backend:
    """The first backend that supports it."""
    return next(backend for backend in BACKENDS if backend.supports(weight, x, rounding))


class Handles:
    """What backends prepared of one weight, anew where it has moved. A copy of a module starts without."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[list[int], Any]] = {}

    def of(self, backend: Backend, weight: PackedWeight) -> Any:
        """The backend's handle for the weight."""
        places = [0 if tensor is None else tensor.data_ptr() for tensor in weight.tensors]
        made = self._made.get(backend.name)
        if made is None or made[0] != places:
            made = self._made[backend.name] = places, backend.prepare(weight)
        return made[1]

    def __reduce__(self) -> Any:
        return Handles, ()


def is_plain(x: Tensor) -> bool:
    """Whether a call with x may go to a backend: nobody traces it, or asks for what torch's ops alone can tell."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
    )

"""A list of instructions that the library runs through in one call: csrc/program.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from abridged.runtime import kernels
from abridged.runtime.activations import Rounding
from abridged.runtime.kernels import FUNCTIONS, Held, Kernels

#: What may stand between the matrices of a feed-forward part, by the library's numbers.
ACTIVATIONS = {**FUNCTIONS, "silu": 3, "relu": 4, "relu2": 5, "gelu_sigmoid": 6}


class Place(ctypes.Structure):
    """Where keys and values of a layer are: those that a new token sees, its own last."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 4),  #: batch and head of keys, then of values, in numbers
        ("seen", ctypes.c_int64),
        ("type", ctypes.c_int32),
    ]

    def put(self, keys: Tensor, values: Tensor) -> None:
        """keys, values: (B, key heads, tokens, width) of one of `CACHE_TYPES`, each head's rows beside each other."""
        self.keys, self.values = keys.data_ptr(), values.data_ptr()
        self.seen, self.type = keys.shape[2], kernels.CACHE_TYPES[keys.dtype]
        self.strides[:] = (keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))


class Program:
    """Instructions for a batch of B tokens, one of each text, in the order in which the methods are called.

    All take and return tensors (B, n) FP32 that the program keeps, and fills when it is run. Nothing is checked here:
    who writes a program (`decoding.compiled`) answers for its sizes.
    """

    def __init__(self, compiled: Kernels, batch: int) -> None:
        self.batch, self._library, self._kept = batch, compiled.library, []  # type: tuple[int, Any, list[Any]]
        pointer, int32, int64, number = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
        new = self._function("", [int32, int64], pointer)
        self._end = self._function("_end", [pointer])
        self._run = self._function("_run", [pointer])
        self._linear = self._function("_linear", [*[pointer] * 9, *[int64] * 5, *[int32] * 4], int32)
        self._norm = self._function("_norm", [*[pointer] * 5, int64, int64, number, int32])
        self._heads = self._function("_heads", [*[pointer] * 3, *[int64] * 6])
        self._turn = self._function("_turn", [pointer, pointer, int64, int64, pointer, pointer, int64, int32])
        self._attend = self._function("_attend", [*[pointer] * 6, *[int64] * 4, number])
        self._activate = self._function("_activate", [*[pointer] * 4, *[int64] * 6, int32])
        self._add = self._function("_add", [*[pointer] * 3, int64, number])
        self._program = new(compiled.number, torch.get_num_threads())
        if not self._program:
            raise MemoryError("no memory for a list of instructions")
        self._rooms: dict[tuple[str, int], Tensor] = {}

    def _function(self, name: str, arguments: list[Any], result: Any = None) -> Any:
        function = getattr(self._library, f"abridged_program{name}")
        function.argtypes, function.restype = arguments, result
        return function

    def __del__(self) -> None:
        if getattr(self, "_program", None):
            self._end(self._program)

    def run(self) -> None:
        """Do all of it."""
        self._run(self._program)

    def room(self, name: str, count: int) -> Tensor:
        """Memory (B, count) that goes by a name; that of a size is one, whoever asks."""
        if (name, count) not in self._rooms:
            self._rooms[name, count] = torch.zeros(self.batch, count)
        return self._rooms[name, count]

    def linear(
        self,
        x: Tensor,
        y: Tensor,
        weight: Held,
        bias: Tensor | None,
        rounding: Rounding | None,
        function: str,
        together: bool,
    ) -> None:
        """y = round(function(x)) W^T + bias; `together` with the matrix before, of which it reads nothing."""
        self._kept.append((x, y, weight, bias, rounding))
        pointers = (x.data_ptr(), y.data_ptr(), *kernels.addresses(weight, bias, rounding))
        sizes = (self.batch, weight.rows, weight.columns, weight.row_bytes, weight.num_scales)
        numbers = (weight.book, kernels.bits_of(rounding), FUNCTIONS[function], together)
        if failed := self._linear(self._program, *pointers, *sizes, *numbers):
            raise kernels.failure(failed, x)

    def norm(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool) -> None:
        """y = x, less its mean or not, over its size, times weight, plus bias: of each part of x as wide as weight."""
        self._kept.append((x, y, weight, bias))
        width = weight.numel()
        pointers = (x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr())
        self._norm(self._program, *pointers, x.numel() // width, width, eps, centred)

    def heads(self, x: Tensor, y: Tensor, offset: int, stride: int, count: int, width: int) -> None:
        """y (B, count * width): head h of x from offset + h * stride on."""
        self._kept.append((x, y))
        sizes = (self.batch, x.shape[1], offset, stride, count, width)
        self._heads(self._program, x.data_ptr(), y.data_ptr(), *sizes)

    def turn(self, x: Tensor, width: int, cos: Tensor, sin: Tensor, pairs: bool) -> None:
        """Rotary positions of heads of `width` in x, in place; cos, signed sin: (turned,) FP32."""
        self._kept.append((x, cos, sin))
        sizes = (x.data_ptr(), x.numel() // width, width, cos.data_ptr(), sin.data_ptr(), cos.numel(), pairs)
        self._turn(self._program, *sizes)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, y: Tensor, place: Place, width: int, scaling: float
    ) -> None:
        """Key and value join those at `place`; y is what the query then sees."""
        self._kept.append((query, key, value, y, place))
        pointers = (*(t.data_ptr() for t in (query, key, value, y)), ctypes.addressof(place))
        sizes = (self.batch, query.shape[1] // width, key.shape[1] // width, width)
        self._attend(self._program, *pointers, *sizes, scaling)

    def activate(self, gate: Tensor, up: Tensor | None, y: Tensor, function: str, steps: tuple[int, int]) -> None:
        """y = function(gate) * up, of every step-th number; gate and up may be parts of what a matrix made."""
        self._kept.append((gate, up, y))
        pointers = (gate.data_ptr(), None if up is None else up.data_ptr(), y.data_ptr())
        rows = (gate.stride(0), steps[0], 0 if up is None else up.stride(0), steps[1])
        self._activate(self._program, *pointers, self.batch, y.shape[1], *rows, ACTIVATIONS[function])

    def add(self, x: Tensor, y: Tensor, by: float) -> None:
        """y += by * x."""
        self._kept.append((x, y))
        self._add(self._program, x.data_ptr(), y.data_ptr(), y.numel(), by)

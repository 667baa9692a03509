"""A spec's step as one call into the library: all between a token's embedding and its logits."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from abridged.runtime import kernels
from abridged.runtime.attention import quantizers_of
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.decoding.parts import affine, served
from abridged.runtime.decoding.spec import Attention, Block, Columns, FeedForward, Heads, Norm, StepSpec
from abridged.runtime.kernels import CACHE_TYPES
from abridged.runtime.program import ACTIVATIONS, Place, Program

Turn = tuple[Tensor, Tensor]
#: Texts that go on together; more are as well served by a call for each matrix.
MOST = 8


class NoInstruction(Exception):
    """The library has none for something in a spec."""


class Compiled:
    """A spec's steps for a batch of texts, in FP32 between matrices.

    Raises:
        NoInstruction: the library cannot do all of it.
    """

    def __init__(self, model: Any, spec: StepSpec, batch: int, turns: list[Turn], used: list[int]) -> None:
        """turns: cosines and signed sines (width,) of any position, of those of the spec's rotaries that are `used`."""
        library = kernels.kernels()
        if library is None:
            raise NoInstruction("there is no library")
        self._model, self._spec, self._used = model, spec, used
        self._program = Program(library, batch)
        self._turns = [(cos.float().clone(), sin.float().clone()) for cos, sin in turns]
        self._windows = [block.attention.window for block in spec.blocks]
        self._places = [Place() for _ in spec.blocks]
        self._lock = threading.Lock()  # the memory between matrices is one
        self._x = self._program.room("x", self._columns(spec.blocks[0].attention.query.matrix))
        for number, block in enumerate(spec.blocks):
            self._block(block, number)
        y = self._x if spec.norm is None else self._norm(spec.norm, self._x, "first")
        if spec.head_multiplier != 1.0:
            self._program.add(y, y, spec.head_multiplier - 1.0)
        self._logits = self._linear(spec.head, y, "logits")

    @staticmethod
    def keeps(layers: list[Any]) -> bool:
        """Whether these layers of a cache are of types that the library appends to."""
        return all(layer.keys.dtype in CACHE_TYPES and layer.values.dtype == layer.keys.dtype for layer in layers)

    def __call__(self, x: Tensor, turns: list[Turn], layers: list[Any]) -> Tensor:
        """Logits (B, vocabulary) FP32, before the spec's multiplier and cap, of embeddings x (B, columns) FP32."""
        with self._lock:
            self._x.copy_(x)
            for held, given in zip(self._turns, turns, strict=True):
                held[0].copy_(given[0])
                held[1].copy_(given[1])
            for layer, place, window in zip(layers, self._places, self._windows, strict=True):
                place.put(*Appending.extended(layer, window))
            self._program.run()
            return self._logits.clone()

    # ---- of the spec's parts, instructions

    def _module(self, path: str) -> Any:
        return self._model.get_submodule(path)

    def _packed(self, path: str) -> Any:
        module = self._module(path)
        if not served(module):
            raise NoInstruction(f"{path} is no packed matrix that the library serves")
        return module

    def _columns(self, path: str) -> int:
        return int(self._packed(path).columns)

    def _linear(self, path: str, x: Tensor, name: str, together: bool = False) -> Tensor:
        module = self._packed(path)
        y = self._program.room(name, module.rows)
        bias = None if module.bias is None else module.bias.detach().float()
        self._program.linear(x, y, module.held(), bias, module.rounding(), module.input_function, together)
        return y

    def _norm(self, spec: Norm | None, x: Tensor, name: str | None = None) -> Tensor:
        """What a norm makes of x: in a room of that name, or in place."""
        if spec is None:
            return x
        y = x if name is None else self._program.room(name, x.shape[1])
        self._program.norm(x, y, *affine(self._module(spec.path), spec), spec.eps, spec.centred)
        return y

    def _block(self, spec: Block, number: int) -> None:
        x, add = self._x, self._program.add
        y = self._norm(spec.attention.before, x, "first")
        added = self._attention(spec.attention, y, number)
        if not spec.parallel:
            add(added, x, spec.attention.multiplier)
        shared = spec.parallel and spec.attention.before == spec.feed_forward.before
        z = y if shared else self._norm(spec.feed_forward.before, x, "second")
        add(self._feed_forward(spec.feed_forward, z), x, spec.feed_forward.multiplier)
        if spec.parallel:
            add(added, x, spec.attention.multiplier)

    def _attention(self, spec: Attention, y: Tensor, number: int) -> Tensor:
        roles = spec.query, spec.key, spec.value
        width = spec.query.width
        if spec.softcap is not None or quantizers_of(self._module(spec.path)) is not None:
            raise NoInstruction(f"{spec.path} has a softcap, or rounds what it reads")
        if any(role.width != width for role in roles) or spec.query.count % spec.key.count:
            raise NoInstruction(f"{spec.path} has heads of several widths")
        made: dict[str, Tensor] = {}
        for path in dict.fromkeys(role.matrix for role in roles):
            made[path] = self._linear(path, y, f"projected {len(made)}", together=bool(made))
        query, key, value = (self._heads(role, made[role.matrix], n) for role, n in zip(roles, "qkv", strict=True))
        if spec.rotary is not None:
            pairs = self._spec.rotaries[spec.rotary].style == "pairs"
            for x in (query, key):
                self._program.turn(x, width, *self._turns[self._used.index(spec.rotary)], pairs)
        seen = self._program.room("seen", query.shape[1])
        self._program.attend(query, key, value, seen, self._places[number], width, spec.scaling)
        return self._norm(spec.after, self._linear(spec.output, seen, "attended"))

    def _heads(self, spec: Heads, made: Tensor, name: str) -> Tensor:
        y = self._program.room(name, spec.count * spec.width)
        self._program.heads(made, y, spec.offset, spec.stride, spec.count, spec.width)
        return self._norm(spec.norm, y)

    def _feed_forward(self, spec: FeedForward, y: Tensor) -> Tensor:
        if spec.activation not in ACTIVATIONS:
            raise NoInstruction(f"an activation called {spec.activation}")
        up = self._linear(spec.up.matrix, y, "up")
        if spec.gate is None:
            inner = up
            if spec.activation != "identity":
                inner = self._program.room("inner", up.shape[1])
                self._program.activate(up, None, inner, spec.activation, (1, 1))
        else:
            same = spec.gate.matrix == spec.up.matrix
            gate = up if same else self._linear(spec.gate.matrix, y, "gate", together=True)
            inner = self._program.room("inner", spec.up.count)
            steps = spec.gate.step, spec.up.step
            self._program.activate(part(gate, spec.gate), part(up, spec.up), inner, spec.activation, steps)
        return self._norm(spec.after, self._linear(spec.output, inner, "fed"))


def part(made: Tensor, which: Columns) -> Tensor:
    """What a matrix made, from the first of some columns on."""
    return made[:, which.start :]


def compiled(model: Any, spec: StepSpec, batch: int, turns: list[Turn], used: list[int]) -> Compiled | None:
    """`Compiled`, or None where the library cannot do all of it."""
    try:
        return Compiled(model, spec, batch, turns, used)
    except NoInstruction:
        return None

"""Steps of one token as a spec says them, straight from kernel to kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from abridged.runtime.attention import quantizers_of
from abridged.runtime.decoding import parts
from abridged.runtime.decoding.cache import Appending
from abridged.runtime.decoding.compiled import MOST, Compiled, Turn, compiled
from abridged.runtime.decoding.describe import columns, select
from abridged.runtime.decoding.parts import Turns, turned
from abridged.runtime.decoding.spec import Attention, Block, FeedForward, Heads, Norm, StepSpec

BlockStep = Callable[[Tensor, Any, list[Turn]], Tensor]


class Steps:
    """One-token steps through a model.

    In bf16 the cache and attention have that type, and what lies between the kernels is FP32.
    """

    def __init__(self, model: Any, spec: StepSpec, dtype: torch.dtype) -> None:
        self.model, self.spec, self.dtype = model, spec, dtype
        self.windows = [block.attention.window for block in spec.blocks]
        paths = [block.attention.path for block in spec.blocks]
        self.quantized_attention = any(quantizers_of(self._module(path)) is not None for path in paths)
        self.tokens = parts.embedding(self._module(spec.embedding))
        self.positions = None if spec.positions is None else parts.table_row(self._module(spec.positions.path))
        self.offset = 0 if spec.positions is None else spec.positions.offset
        used = sorted({i for block in spec.blocks if (i := block.attention.rotary) is not None})
        self.turns = [Turns(self._module(spec.rotaries[i].path), spec.rotaries[i]) for i in used]
        self._used = used
        self._compiled: dict[int, Compiled | None] = {}

    def __call__(self, ids: Tensor, cache: Any) -> CausalLMOutputWithPast:
        """Logits (B, 1, vocabulary) after ids (B, 1), which the cache then has, too."""
        logits = self.step(ids[:, 0], cache.layers, Appending.length(cache))
        return CausalLMOutputWithPast(logits=logits[:, None].to(self.dtype), past_key_values=cache)

    def step(self, ids: Tensor, layers: list[Any], length: int) -> Tensor:
        """Logits (B, vocabulary) FP32 after the token ids (B,), the `length` tokens before them being in the cache."""
        spec = self.spec
        x = self.tokens(ids)
        if spec.multiplier != 1.0:
            x.mul_(spec.multiplier)
        if self.positions is not None:
            x.add_(self.positions(length + self.offset))
        turns = [turn(x, length) for turn in self.turns]
        at_once = self.compiled_for(len(ids), turns)
        if at_once is not None and at_once.keeps(layers):
            logits = at_once(x, turns, layers)
        else:
            logits = self._one_by_one(x, turns, layers)
        if spec.softcap is not None:
            return torch.tanh(logits / spec.softcap).mul_(spec.softcap)
        return logits if spec.logits_multiplier == 1.0 else logits * spec.logits_multiplier

    def at_once(self, batch: int) -> bool:
        """Whether a step of so many texts is one call into the library."""
        x = self.tokens(torch.zeros(batch, dtype=torch.long))
        return self.compiled_for(batch, [turn(x, 0) for turn in self.turns]) is not None

    def compiled_for(self, batch: int, turns: list[Turn]) -> Compiled | None:
        """The step of so many texts as one call into the library, where that can do all of it; turns: of any token."""
        if batch > MOST:
            return None
        if batch not in self._compiled:
            self._compiled[batch] = compiled(self.model, self.spec, batch, turns, self._used)
        return self._compiled[batch]

    def _one_by_one(self, x: Tensor, turns: list[Turn], layers: list[Any]) -> Tensor:
        """Logits (B, vocabulary), by a call for each matrix: where the library has no instruction for something."""
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, layer, turns)
        if self.norm is not None:
            x = self.norm(x)
        if self.spec.head_multiplier != 1.0:
            x = x * self.spec.head_multiplier
        return self.head(x).clone()

    @cached_property
    def blocks(self) -> list[BlockStep]:
        return [self._block(block, self._used) for block in self.spec.blocks]

    @cached_property
    def norm(self) -> parts.Function | None:
        return self._norm(self.spec.norm)

    @cached_property
    def head(self) -> parts.Function:
        return self._linear(self.spec.head)

    # ---- of the spec's parts, functions

    def _module(self, path: str) -> Any:
        return self.model.get_submodule(path)

    def _linear(self, path: str) -> parts.Function:
        return parts.linear(self._module(path), self.dtype)

    def _norm(self, spec: Norm | None) -> parts.Function | None:
        return None if spec is None else parts.norm(self._module(spec.path), spec)

    def _block(self, spec: Block, rotaries: list[Any]) -> BlockStep:
        attention, feed_forward = self._attention(spec.attention, rotaries), self._feed_forward(spec.feed_forward)
        first, second = self._norm(spec.attention.before), self._norm(spec.feed_forward.before)
        shared = spec.parallel and spec.attention.before == spec.feed_forward.before
        one, other = spec.attention.multiplier, spec.feed_forward.multiplier

        def parallel(x: Tensor, layer: Any, turns: list[Turn]) -> Tensor:
            y = x if first is None else first(x)
            z = y if shared else x if second is None else second(x)
            added = attention(y, layer, turns)
            return x.add_(feed_forward(z), alpha=other).add_(added, alpha=one)

        def in_turn(x: Tensor, layer: Any, turns: list[Turn]) -> Tensor:
            x.add_(attention(x if first is None else first(x), layer, turns), alpha=one)
            return x.add_(feed_forward(x if second is None else second(x)), alpha=other)

        return parallel if spec.parallel else in_turn

    def _attention(self, spec: Attention, rotaries: list[Any]) -> BlockStep:
        heads = self._heads(spec)
        attend = parts.attend(self._module(spec.path), spec.scaling, spec.softcap)
        output, after, window = self._linear(spec.output), self._norm(spec.after), spec.window
        query_norm, key_norm = self._head_norm(spec.query), self._head_norm(spec.key)
        number = None if spec.rotary is None else rotaries.index(spec.rotary)
        style = None if spec.rotary is None else self.spec.rotaries[spec.rotary].style
        append = Appending.append

        def run(y: Tensor, layer: Any, turns: list[Turn]) -> Tensor:
            query, key, value = heads(y)
            if query_norm is not None:
                query = query_norm(query)
            if key_norm is not None:
                key = key_norm(key)
            if style is not None:
                cos, sin = turns[number]  # type: ignore[index]
                query, key = turned(query, cos, sin, style), turned(key, cos, sin, style)
            keys, values = append(layer, key, value, window)
            made = output(attend(query[:, :, None], keys, values))
            return made if after is None else after(made)

        return run

    def _heads(self, spec: Attention) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """Queries, keys and values (B, heads, d) of what the part reads (B, columns)."""
        roles = spec.query, spec.key, spec.value
        paths = list(dict.fromkeys(role.matrix for role in roles))
        matrices = [self._linear(path) for path in paths]
        if len(paths) == 3:
            q, k, v = matrices
            width, value_width = spec.query.width, spec.value.width

            def apart(y: Tensor) -> tuple[Tensor, ...]:
                batch = len(y)
                return (
                    q(y).view(batch, -1, width),
                    k(y).view(batch, -1, width),
                    v(y).view(batch, -1, value_width),
                )

            return apart
        which = [paths.index(role.matrix) for role in roles]
        count, width = spec.query.count, spec.query.width
        if len(paths) == 1 and [(r.offset, r.stride, r.count, r.width) for r in roles] == [
            (i * count * width, width, count, width) for i in range(3)
        ]:
            fused = matrices[0]
            return lambda y: fused(y).view(len(y), 3, count, width).unbind(1)

        def together(y: Tensor) -> tuple[Tensor, ...]:
            made = [matrix(y) for matrix in matrices]
            return tuple(select(made[i], role) for i, role in zip(which, roles, strict=True))

        return together

    def _head_norm(self, heads: Heads) -> parts.Function | None:
        if heads.norm is None:
            return None
        module, norm = self._module(heads.norm.path), self._norm(heads.norm)
        if module.weight.numel() == heads.width:
            return norm
        return lambda x: norm(x.flatten(1)).view_as(x)  # type: ignore[misc]

    def _feed_forward(self, spec: FeedForward) -> parts.Function:
        up, down, after = self._linear(spec.up.matrix), self._linear(spec.output), self._norm(spec.after)
        activation, gate_columns, up_columns = parts.ACTIVATIONS[spec.activation], spec.gate, spec.up

        def plain(y: Tensor) -> Tensor:
            return down(activation(up(y)))

        def fused(y: Tensor) -> Tensor:
            made = up(y)
            return down(activation(columns(made, gate_columns)) * columns(made, up_columns))  # type: ignore[arg-type]

        if gate_columns is None:
            run = plain
        elif gate_columns.matrix == up_columns.matrix:
            run = fused
        else:
            gate = self._linear(gate_columns.matrix)

            def run(y: Tensor) -> Tensor:
                return down(activation(gate(y)) * up(y))

        return run if after is None else lambda y: after(run(y))

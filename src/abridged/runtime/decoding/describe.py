"""The spec of a decoder's step, found by watching the model itself read a few tokens.

Nothing is known by name: what a matrix reads, where its heads lie, how they are turned, which activation stands between
two matrices and what a sum is made of is what reproduces the numbers seen. What nothing reproduces is not described.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from abridged.runtime.decoding import parts
from abridged.runtime.decoding.parts import turned, waves
from abridged.runtime.decoding.spec import (
    POSITIONS,
    STATES,
    Attention,
    Block,
    Columns,
    FeedForward,
    Heads,
    Norm,
    Positions,
    Rotary,
    StepSpec,
)
from abridged.runtime.decoding.watch import Event, watched

TOKENS = 5  #: that the model reads
_OFFSETS = range(5)  #: rows of a table of positions before that of the first token


class Undescribed(Exception):
    """A model does something that a spec has no word for; says what."""


def describe(model: Any) -> StepSpec:
    """Raises Undescribed where a spec cannot say what the model does."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, TOKENS), generator=generator)
    with torch.no_grad(), watched(model) as events:
        made = type(model).forward(model, input_ids=ids, use_cache=True)
    with torch.no_grad():
        return _Description(model, events, made.logits[0].float()).spec()


class _Description:
    def __init__(self, model: Any, events: list[Event], logits: Tensor) -> None:
        self.model, self.logits = model, logits
        self.tolerance = 1e-4 if parts.computes_in(model) == torch.float32 else 2e-2
        config = model.config.get_text_config()
        given = [v for v in vars(config).values() if isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0]
        self.numbers = [f for v in given for f in (v, 1 / v, v**0.5, v**-0.5)]
        self.softcaps = [float(v) for v in given]
        self.rotaries: list[Rotary] = []
        self.waves: list[tuple[Tensor, Tensor]] = []
        self.before, self.within, self.after = self._by_block(events)
        for event in events:
            if event.kind == "rotary":
                self._add_rotary(event)

    def _by_block(self, events: list[Event]) -> tuple[list[Event], list[tuple[Event, list[Event]]], list[Event]]:
        """Events before the first block, those of each block, and those after the last."""
        attentions = [event for event in events if event.kind == "attention"]
        if not attentions:
            raise Undescribed("its attention is not transformers' interface")
        blocks = [e for e in events if e.kind == "block" and any(_under(a.path, e.path) for a in attentions)]
        blocks = [e for e in blocks if not any(e is not o and _under(e.path, o.path) for o in blocks)]
        inside = {id(e) for e in events for b in blocks if _under(e.path, b.path)}
        within = [(b, [e for e in events if _under(e.path, b.path) and e is not b]) for b in blocks]
        if len({b.path for b in blocks}) < len(blocks) or len(blocks) != len(attentions):
            raise Undescribed(f"{len(attentions)} calls of attention are in {len(blocks)} blocks")
        first = min(i for i, e in enumerate(events) if id(e) in inside)
        rest = [(i, e) for i, e in enumerate(events) if id(e) not in inside]
        return [e for i, e in rest if i < first], within, [e for i, e in rest if i > first]

    # ---- comparing

    def same(self, a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and self.error(a, b) < self.tolerance

    def error(self, a: Tensor, b: Tensor) -> float:
        """How far a (T, …) is from b, as a share of b; every token counts alike."""
        size = b.flatten(1).norm(dim=1).clamp_min(1e-30)
        return float(((a - b).flatten(1).norm(dim=1) / size).mean())

    def combination(self, target: Tensor, terms: list[Tensor]) -> list[float] | None:
        """Numbers by which the terms (T, …) add up to the target; None where there are none."""
        size = target.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-30)
        columns = torch.stack([(t.flatten(1) / size).flatten() for t in terms], 1).double()
        wanted = (target.flatten(1) / size).flatten().double()
        found = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
        numbers = [
            self.snapped(float(n), float(c.norm() / wanted.norm())) for n, c in zip(found, columns.T, strict=True)
        ]
        total = sum((n * t for n, t in zip(numbers, terms, strict=True)), torch.zeros(()))
        return numbers if self.same(total, target) else None

    def snapped(self, number: float, share: float) -> float:
        """1 or a number that the config states where it is as near as rounding lets one see, else the number itself.

        share: how much of the sum the term is; the less, the less exactly its number is known.
        """
        doubt = self.tolerance / min(1.0, max(share, 1e-6))
        if abs(number - 1) < doubt:
            return 1.0
        nearest = min(self.numbers, key=lambda n: abs(n - number), default=number)
        return nearest if abs(nearest - number) < min(doubt, 0.05) * abs(number) else number

    # ---- the parts

    def spec(self) -> StepSpec:
        stream, embedding = self._start()
        blocks = []
        for block, events in self.within:
            if not self.same(block.given, stream):
                raise Undescribed(f"something stands before {block.path}")
            blocks.append(self._block(block, events))
            stream = block.made
        path, multiplier, positions = embedding
        norm, head, head_multiplier, logits_multiplier, softcap = self._end(stream)
        return StepSpec(
            embedding=path,
            multiplier=multiplier,
            positions=positions,
            rotaries=tuple(self.rotaries),
            blocks=tuple(blocks),
            norm=norm,
            head=head,
            head_multiplier=head_multiplier,
            logits_multiplier=logits_multiplier,
            softcap=softcap,
        )

    def _start(self) -> tuple[Tensor, tuple[str, float, Positions | None]]:
        tables = [e for e in self.before if e.kind == "embedding"]
        own = next((e for e in tables if e.module is self.model.get_input_embeddings()), None)
        others = [e for e in tables if e is not own]
        stream = self.within[0][0].given
        if own is None or len(others) > 1:
            raise Undescribed("what is added up before the first block is not an embedding and positions")
        terms = [own.made, *(e.made for e in others)]
        found = None if any(t.shape != stream.shape for t in terms) else self.combination(stream, terms)
        if found is None or found[1:] not in ([], [1.0]):
            raise Undescribed("what stands between the embedding and the first block is not known")
        positions = self._positions(others[0]) if others else None
        return stream, (own.path, found[0], positions)

    def _positions(self, event: Event) -> Positions:
        row = parts.table_row(event.module)
        for offset in _OFFSETS:
            if self.same(torch.stack([row(t + offset) for t in range(TOKENS)]), event.made):
                return Positions(event.path, offset)
        raise Undescribed(f"which rows {event.path} gives is not known")

    def _end(self, stream: Tensor) -> tuple[Norm | None, str, float, float, float | None]:
        head = next((e for e in self.after if e.module is self.model.get_output_embeddings()), None)
        if head is None:
            raise Undescribed("its logits do not come from one matrix")
        norm = next((e for e in self.after if e.kind == "norm" and self.same(e.given, stream)), None)
        read = self.combination(head.given, [stream if norm is None else norm.made])
        if read is None:
            raise Undescribed("what stands between the last block and the head is not known")
        candidates: list[tuple[float, float, float | None]] = [(self.error(head.made, self.logits), 1.0, None)]
        linear = self.combination(self.logits, [head.made])
        if linear is not None:
            candidates.append((self.error(head.made * linear[0], self.logits), linear[0], None))
        for cap in self.softcaps:
            candidates.append((self.error(cap * torch.tanh(head.made / cap), self.logits), 1.0, cap))
        error, multiplier, softcap = min(candidates, key=lambda c: c[0])
        if error > self.tolerance:
            raise Undescribed("what stands between the head and the logits is not known")
        return None if norm is None else self._norm(norm), head.path, read[0], multiplier, softcap

    def _block(self, block: Event, events: list[Event]) -> Block:
        at = next(i for i, e in enumerate(events) if e.kind == "attention")
        norms = [e for e in events if e.kind == "norm"]
        attention, made, readers = self._attention(events[at], block.given, events[:at], events[at + 1 :], norms)
        rest = [e for e in events if e.kind == "linear" and e.path not in (*readers, attention.output)]
        if len(rest) not in (2, 3):
            raise Undescribed(f"{block.path} has {len(rest)} matrices beside those of attention")
        *ups, down = rest
        before, base = self._reads(ups, norms)
        after, added = self._after(down, norms)
        feed_forward = FeedForward(before, *self._inner(ups, down), down.path, after, 1.0)
        terms = [block.given, made, added]
        parallel = self.same(base, block.given)
        first = None if parallel else self.combination(base, terms[:2])
        if not parallel and (first is None or first[0] != 1.0):
            raise Undescribed(f"what the feed-forward part of {block.path} reads is not known")
        both = self.combination(block.made, terms if parallel else [base, added])
        if both is None or both[0] != 1.0:
            raise Undescribed(f"what {block.path} adds up to is not known")
        number = both[1] if first is None else first[1]
        return Block(
            replace(attention, multiplier=number), replace(feed_forward, multiplier=both[-1]), parallel=parallel
        )

    def _attention(
        self, call: Event, stream: Tensor, before: list[Event], after: list[Event], norms: list[Event]
    ) -> tuple[Attention, Tensor, list[str]]:
        """The part, what it adds to the stream, and the paths of the matrices that it reads with."""
        linears = [e for e in before if e.kind == "linear"]
        inner = [e for e in before if e.kind == "norm"]
        found = [self._heads(target, linears, inner) for target in call.given]
        if any(one is None for one in found):
            raise Undescribed(f"how queries, keys and values of {call.path} are made is not known")
        (query, rotary, factor), (key, key_rotary, _), (value, turned_value, _) = found  # type: ignore[misc]
        if key_rotary != rotary or turned_value is not None or found[1][2] != 1.0 or found[2][2] != 1.0:  # type: ignore[index]
            raise Undescribed(f"queries and keys of {call.path} are not turned alike")
        used = [e for e in linears if e.path in {query.matrix, key.matrix, value.matrix}]
        norm, base = self._reads(used, norms)
        if not self.same(base, stream):
            raise Undescribed(f"{call.path} does not read the stream")
        output = next((e for e in after if e.kind == "linear"), None)
        if output is None or not self.same(output.given, call.made):
            raise Undescribed(f"something stands between {call.path} and its last matrix")
        post, added = self._after(output, norms)
        extra = call.extra
        strange = [n for n in ("s_aux", "position_bias", "head_mask") if extra.get(n) is not None]
        window = extra.get("sliding_window")
        if strange or (window is not None and window < 2):
            raise Undescribed(f"{call.path} has {(strange or ['a window of one token'])[0]}")
        scaling = extra.get("scaling")
        scaling = factor * (query.width**-0.5 if scaling is None else float(scaling))
        softcap = extra.get("softcap")
        part = Attention(call.path, norm, query, key, value, rotary, scaling, softcap, window, output.path, post, 1.0)
        return part, added, [e.path for e in used]

    def _reads(self, matrices: list[Event], norms: list[Event]) -> tuple[Norm | None, Tensor]:
        """The norm through which matrices read, and what it reads."""
        x = matrices[0].given
        if not all(self.same(e.given, x) for e in matrices):
            raise Undescribed(f"{matrices[0].path} and {matrices[-1].path} do not read the same")
        event = next((e for e in norms if self.same(e.made, x)), None)
        return (None, x) if event is None else (self._norm(event), event.given)

    def _after(self, matrix: Event, norms: list[Event]) -> tuple[Norm | None, Tensor]:
        """The norm between a matrix and the stream, and what is added to the stream."""
        event = next((e for e in norms if self.same(e.given, matrix.made)), None)
        return (None, matrix.made) if event is None else (self._norm(event), event.made)

    def _norm(self, event: Event) -> Norm:
        names = ("variance_epsilon", "eps", "epsilon")
        eps = next((float(getattr(event.module, n)) for n in names if hasattr(event.module, n)), None)
        if eps is not None:
            specs = [Norm(event.path, centred, offset, eps) for centred in (True, False) for offset in (0.0, 1.0)]
            made = {spec: parts.norm(event.module, spec)(event.given) for spec in specs}
            best = min(specs, key=lambda spec: self.error(made[spec], event.made))
            if self.same(made[best], event.made):
                return best
        raise Undescribed(f"{event.path} is no norm that is known")

    def _heads(
        self, target: Tensor, linears: list[Event], norms: list[Event]
    ) -> tuple[Heads, int | None, float] | None:
        """Where the heads (T, heads, d) come from, which rotary positions they have, and what multiplies them."""
        count, width = target.shape[1:]
        for event in linears:
            for offset, stride in _places(event.made.shape[1], count, width):
                heads = Heads(event.path, offset, stride, count, width)
                for norm, x in self._normed(select(event.made, heads), norms):
                    for rotary in (None, *range(len(self.waves))):
                        if rotary is not None and self.waves[rotary][0].shape[-1] > width:
                            continue
                        y = x
                        if rotary is not None:
                            cos, sin = self.waves[rotary]
                            y = turned(x, cos, sin, self.rotaries[rotary].style)
                        found = self.combination(target, [y])
                        if found is not None:
                            return replace(heads, norm=norm), rotary, found[0]
        return None

    def _normed(self, x: Tensor, norms: list[Event]) -> Iterator[tuple[Norm | None, Tensor]]:
        """Heads (T, heads, d) as they are, and through each norm that fits them."""
        yield None, x
        for event in norms:
            size = event.module.weight.numel()
            if event.module.weight.ndim == 1 and size in (x.shape[2], x.shape[1] * x.shape[2]):
                spec = self._norm(event)
                yield spec, parts.norm(event.module, spec)(x if size == x.shape[2] else x.flatten(1)).view_as(x)

    def _inner(self, ups: list[Event], down: Event) -> tuple[Columns | None, Columns, str]:
        """Gate, what it lets through, and the activation between the matrices of a feed-forward part."""
        wanted, inner = down.given, down.given.shape[1]
        whole = [Columns(e.path, 0, e.made.shape[1], 1) for e in ups]
        made = {e.path: e.made for e in ups}
        pairs: list[tuple[Columns | None, Columns]] = []
        if len(ups) == 2:
            pairs = [(whole[0], whole[1]), (whole[1], whole[0])]
        elif whole[0].count == inner:
            pairs = [(None, whole[0])]
        elif whole[0].count == 2 * inner:
            halves = [Columns(ups[0].path, i * inner, inner, 1) for i in (0, 1)]
            turns = [Columns(ups[0].path, i, inner, 2) for i in (0, 1)]
            pairs = [(a[i], a[1 - i]) for a in (halves, turns) for i in (0, 1)]
        candidates = []
        for gate, up in pairs:
            for name, function in parts.ACTIVATIONS.items():
                y = columns(made[up.matrix], up)
                y = function(y) if gate is None else function(columns(made[gate.matrix], gate)) * y
                candidates.append((self.error(y, wanted), (gate, up, name)))
        error, best = min(candidates, key=lambda c: c[0], default=(1.0, None))
        if best is not None and error < self.tolerance:
            return best
        raise Undescribed(f"what {down.path} reads is not known")

    def _add_rotary(self, event: Event) -> None:
        arguments = []
        named = [*((None, v) for v in event.given), *event.extra.items()]
        for name, value in named:
            if isinstance(value, Tensor):
                value = STATES if value.is_floating_point() else POSITIONS
            arguments.append((name, value))
        cos, sin = event.made
        if cos.shape[0] not in (1, TOKENS) or cos.shape != sin.shape:
            return
        for style, repeated in (("half", False), ("pairs", True), ("pairs", False)):
            rotary = Rotary(event.path, tuple(arguments), style, repeated)  # type: ignore[arg-type]
            if rotary not in self.rotaries:
                self.rotaries.append(rotary)
                self.waves.append(waves(cos[:, None], sin[:, None], rotary))


def _under(path: str, block: str) -> bool:
    return path == block or path.startswith(block + ".")


def _places(size: int, count: int, width: int) -> Iterator[tuple[int, int]]:
    """Offset and stride of `count` heads among `size` numbers: alone, in one of several runs, or turn by turn."""
    run = count * width
    if size == run:
        yield 0, width
        return
    for offset in {*range(0, size - run + 1, run), *range(size - run, -1, -run)}:
        yield offset, width
    if size % run == 0:
        for offset in range(0, size // count, width):
            yield offset, size // count


def select(made: Tensor, heads: Heads) -> Tensor:
    """The heads (B, count, width) in what their matrix made (B, columns)."""
    batch = made.shape[0]
    if heads.stride == heads.width:
        return made.narrow(1, heads.offset, heads.count * heads.width).view(batch, heads.count, heads.width)
    return made.view(batch, heads.count, heads.stride).narrow(2, heads.offset, heads.width)


def columns(made: Tensor, which: Columns) -> Tensor:
    """The columns (B, count) of what a matrix made."""
    if which.step == 1 and which.count == made.shape[1]:
        return made
    return made[:, which.start : which.start + which.count * which.step : which.step]

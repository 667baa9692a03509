"""The view of a model, derived: from what one pass of its stand-in did, whatever the model is called.

1. A stand-in is made of class and config, and watched in one pass (`standin`, `probe`).
2. In each block, a layer that follows a call of attention ends an attention part, and one that writes to the stream
   what layers before it gave ends a feed-forward part. What their columns depend on tells the units (`probe`).
3. A part whose units cannot be told apart stays whole, with the reason in `faults`.
4. Blocks of one kind are alike: what was found of the one in the stand-in is written down for all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from abridged.core.errors import AbridgedError
from abridged.families import quirks
from abridged.families.logits import logits_of
from abridged.families.probe import Dependence, Event, Pass, Units, attention_units, inner_units, passes_by, watch
from abridged.families.standin import TOKENS, StandIn, Table, in_plain_numbers, inputs_of, plain_config, stand_in
from abridged.storage.view import Matrix, Part, PartName, Run, Stream, View

#: A layer outside the blocks with no more rows than this gives labels: where an answer begins and ends.
_FEWEST_LABELS = 2


def derive(kind: type, config: Any, untied: frozenset[str] = frozenset()) -> View:
    """The view of a stock model of a class and a config; no weights are needed.

    Raises:
        AbridgedError: no model can be made of the config, or no pass of it be run; or its blocks mix tokens otherwise
            than by attention.
    """
    with in_plain_numbers():
        return _derive(kind, plain_config(config), untied)


def _derive(kind: type, config: Any, untied: frozenset[str]) -> View:
    found = stand_in(kind, config, untied)
    _refuse_mixers(found, config)
    try:
        try:
            seen = _watch(found)
        except Exception:  # a model that counts its blocks by its config needs them all
            found = stand_in(kind, config, untied, whole=True)
            seen = _watch(found)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise AbridgedError(f"models of type '{config.model_type}' are not supported: no pass ({reason})") from error
    return _Derivation(found, seen, config).view()


def _watch(found: StandIn) -> Pass:
    blocks = [block for block, like in found.like.items() if block == like]
    return watch(found.model, inputs_of(found.model), blocks)


def _refuse_mixers(found: StandIn, config: Any) -> None:
    for path, kind in found.modules.items():
        if kind.__name__ in quirks.MIXERS and found.block_of(path) is not None:
            block = found.modules[found.block_of(path) or ""].__name__
            raise AbridgedError(
                f"models of type '{config.model_type}' are not supported yet: {block} mixes tokens by a state or a "
                f"filter ({path}), and only attention is"
            )


@dataclass
class _Found:
    """What was found in the blocks of the stand-in, by the names that it has for them."""

    parts: dict[str, list[Part]] = field(default_factory=dict)  #: by block
    kinds: dict[str, PartName] = field(default_factory=dict)  #: of linear layers
    after_activation: set[str] = field(default_factory=set)  #: layers whose input is what an activation alone gave
    faults: list[str] = field(default_factory=list)
    prunable: bool = True

    def refuse(self, reason: str) -> None:
        """Nothing of the model can be removed."""
        self.faults.append(reason)
        self.prunable = False


class _Derivation:
    """From a stand-in and a pass of it to the view; `view` does it all."""

    def __init__(self, found: StandIn, seen: Pass, config: Any) -> None:
        self.found, self.seen = found, seen
        self.config = config if config.is_encoder_decoder else config.get_text_config(decoder=True)
        self.model_type = config.model_type
        self.attentions = [event.path for event in seen.of("attention")]
        self.stacks = {path: blocks for path, blocks in found.stacks.items() if self._is_stack(blocks)}
        self.blocks = [block for blocks in self.stacks.values() for block in blocks]
        self.numbers = {block: number for number, block in enumerate(self.blocks)}
        self.widths = {path: self._width(blocks) for path, blocks in self.stacks.items()}
        self.hidden = self._hidden()
        self.result = _Found()

    def view(self) -> View:
        """Everything, in the order in which one builds on another."""
        result = self.result
        self._find_parts()
        matrices, positions, readers = self._matrices()
        writers, poolers = self._outside(readers)
        readers = [path for path in readers if path not in {part.output for part in poolers}]
        self._find_what_is_as_wide({m.name for m in matrices} | {*positions, *readers})
        bare = self._bare({m.name for m in matrices} | {*positions, *readers})
        logits, why = logits_of(self.found.model, inputs_of(self.found.model))
        if why:
            result.faults.append(why)
        return View(
            model_type=self.model_type,
            hidden_size=self.hidden,
            layers=len(self.blocks),
            heads=self._heads(),
            context=self._context(),
            matrices=matrices,
            attentions=self._everywhere(set(self.attentions)),
            positions=positions,
            blocks=self.blocks,
            parts=[*self._parts(), *poolers] if result.prunable else [],
            norms=self._everywhere({event.path for event in self._stream_norms}),
            writers=writers,
            readers=readers,
            sources=[event.path for event in self._sources],
            streams=tuple(
                Stream(path, self.widths[path], len(blocks), self._norm_first(blocks))
                for path, blocks in self.stacks.items()
            ),
            logits=logits,
            embedding_scale=self._embedding_scale(),
            through_base=self.seen.calls_base,
            faults=tuple(dict.fromkeys(result.faults)),
            bare=bare[0],
            bare_names=bare[1],
        )

    # ---- names and sizes

    def _is_stack(self, blocks: list[str]) -> bool:
        """Whether a list holds blocks: what ran, and has attentions where the model has any."""
        ran = [b for b in {self.found.like[b] for b in blocks} if b in self.seen.streams]
        return bool(ran) and (
            not self.attentions or any(path.startswith(f"{block}.") for block in ran for path in self.attentions)
        )

    def _width(self, blocks: list[str]) -> int:
        return next(int(self.seen.streams[b].shape[-1]) for b in blocks if b in self.seen.streams)

    def _hidden(self) -> int:
        """The width of the stream that runs last: the decoder's, or the text's."""
        if not self.stacks:
            raise AbridgedError(f"models of type '{self.model_type}' are not supported: no blocks were found in them")
        order = list(self.seen.streams)
        last = max(self.stacks, key=lambda path: max(order.index(b) for b in self.stacks[path] if b in order))
        self.main = last
        return self.widths[last]

    def _block(self, path: str) -> str | None:
        """The block that a module is in, whether the stand-in has it or not."""
        block = self.found.block_of(path)
        return block if block in self.numbers else None

    def _stream_width(self, path: str) -> int:
        block = self._block(path)
        return self.hidden if block is None else self.widths[block.rpartition(".")[0]]

    def _everywhere(self, probed: set[str]) -> list[str]:
        """Paths of the whole model whose likes in the stand-in are in `probed`, in order."""
        return [path for path in self.found.modules if self.found.as_probed(path) in probed]

    def _in_attention(self, path: str) -> bool:
        return any(path.startswith(f"{attention}.") for attention in self.attentions)

    def _size(self, event: Event) -> Table:
        return self.found.tables[event.path]

    # ---- parts of blocks

    def _find_parts(self) -> None:
        """Walk through the calls of each block; see the module's docstring, 2."""
        pending: list[Event] = []
        attention: Event | None = None
        block: str | None = None
        for event in self.seen.events:
            now = self._block(event.path)
            if event.kind == "attention":
                attention = event
            if event.kind != "linear" or now is None:
                continue
            if now != block:
                self._leave(pending)
                pending, block = [], now
            own = attention is not None and self._block(attention.path) == now
            if pending and own and attention is not None:
                self._add_attention(attention, event, self._own(pending, event))
                pending, attention = [], None
            elif pending and self._size(event).rows == self._stream_width(event.path):
                pending = self._add_feed_forward(event, pending)
            else:
                pending.append(event)
        self._leave(pending)

    def _own(self, pending: list[Event], output: Event) -> list[Event]:
        """Layers of the part that `output` ends; those that are in the stream already (a gate of what another part has
        written) end none."""
        behind = self.seen.events[self.seen.events.index(output) + 1 :]
        after = next((event for event in behind if event.kind == "linear"), None)
        if after is None or after.inputs.grad_fn is None:
            return pending
        beside = [event for event in pending if passes_by(event, output, after)]
        self._leave(beside)
        return [event for event in pending if event not in beside] or pending

    def _leave(self, pending: list[Event]) -> None:
        """Layers that end no part (a router) read the stream, or nothing can be removed."""
        for event in pending:
            if self._size(event).columns != self._stream_width(event.path):
                self.result.refuse(f"{event.path} reads something other than the stream, and ends no part")

    def _add_attention(self, attention: Event, output: Event, pending: list[Event]) -> None:
        dependence = Dependence(output, pending)
        units = attention_units(dependence, int(attention.output.shape[1]))
        tables = [e for e in self.seen.of("embedding") if self._in_attention(e.path)]
        if biased := dependence.reaches(tables):
            units.fault = f"its heads have biases of their own in {biased[0]}"
        if not units.runs and not units.reason:
            units.fault = "no layer was found that its heads depend on"
        self._add("attention", attention.path, output, pending, units, int(attention.output.shape[1]))

    def _add_feed_forward(self, output: Event, pending: list[Event]) -> list[Event]:
        """Add the part that `output` ends, if one does; what is still open after it."""
        dependence = Dependence(output, pending)
        units = inner_units(dependence)
        if not units.runs and not units.reason:
            return [*pending, output]
        # attention that does not go through transformers' interface has heads that are not known
        kind: PartName = "attention" if dependence.mixes_tokens() else "ffn"
        if kind == "attention":
            units.fault = "its attention does not go through transformers' interface"
            self.result.kinds |= {event.path: kind for event in pending}
        self._add(kind, output.path, output, pending, units, self._size(output).columns)
        if len(units.runs) == 1 and all(len(runs) == 1 for runs in units.runs.values()):
            self.result.after_activation.add(output.path)  # not gated
        return [] if kind == "attention" else [event for event in pending if event.path not in units.runs]

    def _add(self, kind: Any, path: str, output: Event, pending: list[Event], units: Units, count: int) -> None:
        layers = [*units.runs, *units.shared]
        self.result.kinds |= dict.fromkeys((*layers, output.path), kind)
        block = self._block(output.path)
        assert block is not None
        part = Part(path, kind, self.numbers[block], tuple(units.runs), output.path, count, units.runs)
        if units.reason:
            part = self._whole(part, layers, pending)
            self.result.faults.append(f"{path} stays whole: {units.reason}")
        self.result.parts.setdefault(block, []).append(part)

    def _whole(self, part: Part, layers: list[str], pending: list[Event]) -> Part:
        """A part that stays as it is: its matrices are one unit."""
        sizes = {event.path: self._size(event) for event in pending}
        inputs = tuple(path for path in (layers or sizes) if path in sizes)
        if any(sizes[path].columns != self._stream_width(path) for path in sizes):
            self.result.prunable = False  # its layers read each other
        runs: dict[str, tuple[Run, ...]] = {path: (Run(0, sizes[path].rows, sizes[path].rows),) for path in inputs}
        return replace(part, kind="fixed", inputs=inputs, units=1, runs=runs)

    def _parts(self) -> list[Part]:
        """The parts of all blocks, each as those of its like."""
        return [
            self._moved(part, self.found.like[block], block)
            for block in self.blocks
            for part in self.result.parts.get(self.found.like[block], ())
        ]

    def _moved(self, part: Part, source: str, target: str) -> Part:
        def move(path: str) -> str:
            return target + path[len(source) :]

        return replace(
            part,
            path=move(part.path),
            layer=self.numbers[target],
            inputs=tuple(move(path) for path in part.inputs),
            output=move(part.output),
            runs={move(path): runs for path, runs in part.runs.items()},
        )

    # ---- matrices

    def _matrices(self) -> tuple[list[Matrix], list[str], list[str]]:
        """All matrices, the token embedding first; paths of position embeddings; output layers for labels."""
        matrices, positions, readers = self._embedding(), [], []
        known = {matrix.name for matrix in matrices}
        widths = {*self.widths.values(), *(matrix.columns for matrix in matrices)}
        runs = {
            path: runs for parts in self.result.parts.values() for part in parts for path, runs in part.runs.items()
        }
        for path in self.found.modules:
            table, probed = self.found.tables.get(path), self.found.as_probed(path)
            if table is None or path in known or path in self.found.ties:
                continue
            if table.embedding:
                if table.columns in widths:
                    positions.append(path)
                    if table.plain and probed in self._called:
                        tied = self._tied(path)  # a decoder's own words, which its head reads
                        own_words: PartName = "embedding" if tied else "positions"
                        matrices.append(
                            Matrix(path, "embedding", own_words, None, table.rows, table.columns, tied=tied)
                        )
                elif probed in self._called and not self._in_attention(probed):
                    self.result.refuse(f"{path} is an embedding of another width")
            elif probed in self._called:
                block = self._block(path)
                part = self._outer_part(path, table) if block is None else self._inner_part(probed)
                if part is None:
                    readers.append(path)
                    continue
                matrices.append(
                    Matrix(
                        path,
                        "linear",
                        part,
                        None if block is None else self.numbers[block],
                        table.rows,
                        table.columns,
                        table.transposed,
                        _fused(runs.get(probed, ()), table.rows),
                        input="asymmetric" if probed in self.result.after_activation else "symmetric",
                    )
                )
        return matrices, positions, readers

    @cached_property
    def _called(self) -> set[str]:
        return {event.path for event in self.seen.events}

    @cached_property
    def _linears(self) -> list[Event]:
        return self.seen.of("linear")

    def _inner_part(self, probed: str) -> PartName:
        return self.result.kinds.get(probed) or ("attention" if self._in_attention(probed) else "ffn")

    def _outer_part(self, path: str, table: Table) -> PartName | None:
        """What a linear layer outside the blocks is for; None: labels."""
        model = self.found.model
        if model.get_submodule(path) is model.get_output_embeddings():
            return "head"
        with_head = model.base_model is not model
        labels = max(getattr(self.config, "num_labels", 0), _FEWEST_LABELS)
        return None if table.rows <= labels or (with_head and path == self._linears[-1].path) else "pooler"

    def _embedding(self) -> list[Matrix]:
        """The token embedding, where there is one, and what is tied to it."""
        event = self._token_embedding
        if event is None:
            return []
        ties = self.found.ties
        path = ties.get(event.path, event.path)
        table = self.found.tables[path]
        if table.columns != self.hidden:
            self.result.refuse(f"{path} is {table.columns} wide and the stream {self.hidden}")
        return [Matrix(path, "embedding", "embedding", None, table.rows, table.columns, tied=self._tied(path))]

    def _tied(self, path: str) -> tuple[str, ...]:
        """Paths of other layers that read the same weight."""
        return tuple(p for p in self.found.tables if self.found.ties.get(p) == path and p != path)

    @cached_property
    def _token_embedding(self) -> Event | None:
        entries = getattr(self.config, "vocab_size", None)
        return next((e for e in self.seen.of("embedding") if self._size(e).rows == entries), None)

    # ---- what stands outside the blocks

    def _outside(self, readers: list[str]) -> tuple[list[str], list[Part]]:
        """Layers after the blocks that write to the stream, and a pooler that a head for labels reads."""
        writers, poolers = [], []
        outside = [e for e in self._linears if self._block(e.path) is None and e not in self._sources]
        for event, after in zip(outside, outside[1:], strict=False):
            if event.path in readers or self._size(event).rows != self.hidden:
                continue
            if self._size(event).columns == self.hidden:
                if after.path in self.found.ties or self._norm_between(event, after):
                    writers.append(event.path)
                elif after.path in readers and (part := self._pooler(event, after)) is not None:
                    poolers.append(part)
        return writers, poolers

    @cached_property
    def _sources(self) -> list[Event]:
        """Layers outside the blocks that read what comes from outside the model, and write to the stream: patches."""
        return [
            event
            for event in self._linears
            if self._block(event.path) is None
            and not event.inputs.requires_grad
            and self._size(event).rows in self.widths.values()
        ]

    def _norm_between(self, event: Event, after: Event) -> bool:
        events = self.seen.events
        between = events[events.index(event) : events.index(after)]
        return any(e.kind == "norm" and e.module.weight.numel() == self.hidden for e in between)

    def _pooler(self, event: Event, reader: Event) -> Part | None:
        units = inner_units(Dependence(reader, [event]))
        if not units.runs or units.reason:
            return None
        inputs = (event.path,)
        return Part(reader.path, "pooler", None, inputs, reader.path, self._size(reader).columns, units.runs)

    @cached_property
    def _stream_norms(self) -> list[Event]:
        return [
            event
            for event in self.seen.of("norm")
            if event.module.weight.numel() == self._stream_width(event.path) and not self._in_attention(event.path)
        ]

    def _norm_first(self, blocks: list[str]) -> bool:
        """Whether a norm stands between what last wrote to the stream before these blocks and what first reads it."""
        events, norms = self.seen.events, {event.path for event in self._stream_norms}
        own = [self.found.like[block] for block in blocks]
        first = next((i for i, e in enumerate(events) if e.kind == "linear" and self._block(e.path) in own), None)
        for event in reversed(events[:first]):
            if event.kind == "norm" and event.path in norms:
                return True
            if event.kind in ("embedding", "linear"):
                return False
        return False

    def _find_what_is_as_wide(self, covered: set[str]) -> None:
        """Of the stream's width and no matrix, norm or bias: a table of sines, a class token, a convolution."""
        widths = set(self.widths.values())
        for name, buffer in self.found.model.named_buffers():
            if buffer.ndim == 2 and len(buffer) > 1 and buffer.shape[-1] in widths:
                self.result.refuse(f"{name} is as wide as the stream, and no parameter")
        kinds = {event.path for event in self.seen.events if event.kind != "attention"} | covered
        for name, shape in self.found.parameters.items():
            owner, _, leaf = name.rpartition(".")
            known = self.found.as_probed(owner) in kinds or leaf.endswith("bias")
            if not known and widths.intersection(shape):
                self.result.refuse(f"{name} is as wide as the stream, and no matrix")

    def _bare(self, covered: set[str]) -> tuple[float, tuple[str, ...]]:
        """The share of weights that no method reaches, and which they are."""
        large = {name: torch.Size(shape).numel() for name, shape in self.found.parameters.items() if len(shape) > 1}
        bare = tuple(name for name in large if name.rpartition(".")[0] not in covered)
        return sum(large[name] for name in bare) / max(sum(large.values()), 1), bare

    # ---- numbers

    def _heads(self) -> int:
        own = [self.found.like[block] for block in self.stacks[self.main]]
        query = next((e.inputs for e in self.seen.of("attention") if self._block(e.path) in own), None)
        return int(query.shape[1]) if query is not None else quirks.first_of(self.config, quirks.HEAD_NAMES) or 0

    def _context(self) -> int:
        """What the config says, and no more than tables of positions have rows for, counted from their first one."""
        reach = [quirks.first_of(self.config, quirks.CONTEXT_NAMES) or quirks.UNBOUND]
        for event in self.seen.of("embedding"):
            ids = event.inputs.flatten().tolist() if self._size(event).plain and event.inputs is not None else []
            if len(ids) == TOKENS and ids == list(range(ids[0], ids[0] + TOKENS)):
                reach.append(self._size(event).rows - ids[0])
        return min(reach)

    def _embedding_scale(self) -> float:
        """What rows of the token embedding are multiplied by; 1 where a norm or more comes between."""
        event = self._token_embedding
        streams = [self.seen.streams[b] for b in self.stacks[self.main] if b in self.seen.streams]
        if event is None or not streams or self._size(event).columns != self.hidden:
            return 1.0
        cotangent = torch.randn(streams[0].shape, generator=torch.Generator().manual_seed(2))
        (found,) = torch.autograd.grad(streams[0], event.output, cotangent, retain_graph=True, allow_unused=True)
        if found is None or found.shape != cotangent.shape:
            return 1.0
        rows = event.module.weight[event.inputs]
        scale = float((found / cotangent).median()) * float((event.output / rows).detach().median())
        exact = torch.allclose(found * (event.output / rows), cotangent * scale, rtol=1e-3, atol=1e-4)
        return scale if exact and scale > 0 else 1.0


def _fused(runs: tuple[Run, ...], rows: int) -> int:
    """Of how many equal blocks of rows a matrix is made, each with all units: 3 of GPT-2's Q, K and V."""
    equal = len({run.size for run in runs}) == 1
    return len(runs) if equal and all(run.offset == i * rows // len(runs) for i, run in enumerate(runs)) else 1

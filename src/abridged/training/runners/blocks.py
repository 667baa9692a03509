"""Block by block: no more of the model is in memory than one block, with what comes into it kept on disk."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from abridged import families
from abridged.checkpoint.pack import PackedPart, assemble, pack_part
from abridged.core.errors import AbridgedError
from abridged.core.hardware import give_back_memory
from abridged.core.modes import evaluating
from abridged.core.progress import progress
from abridged.families import View
from abridged.methods.base import Attached, Calibrate, Method, Needs
from abridged.models.streamed import empty, outside, within
from abridged.recipe import Stage
from abridged.storage.compressed import compressed_of
from abridged.training.processes import share, together
from abridged.training.runners.base import Pass
from abridged.training.runners.block_training import train_block
from abridged.training.runners.kept import KeptOutputs
from abridged.training.runners.passes import hidden_of, lent, run_to, unchanged
from abridged.training.runners.readings import Readings
from abridged.training.runners.rehearsal import rehearse
from abridged.training.runners.whole import groups_of

#: Whose outputs a pass begins with: the teacher's (0), those of the model that the n-th method has changed, or what the
#: teacher's blocks put out in a pass before all others.
Stream = int | Literal["first"]


class Blocks:
    """A runner for models of any size: weights are streamed from disk, and the student exists in packed form alone.

    1. What the model reads its tokens with (embeddings) is changed by the methods and packed.
    2. Each block in order: the teacher's weights are fetched; each method works on the block alone, through a view of
       it, on what the blocks before put out; if the stage trains, the block is trained to put out what the teacher's
       does; it is packed, written, and let go of.
    3. What comes after the blocks (head, pooler) is changed in the same way.
    4. The parts become one packed model.

    What the n-th method gets to see is the model as the methods before it have left it, as with the whole model: there
    are as many models as methods, and one more, the teacher, each with one block at most. A run that is interrupted
    goes on after the last block that was written, with the same result to the bit.

    Where blocks know nothing of each other (`Stage.in_any_order`) several processes share them out: each lets the
    teacher go through all of them, and does 2. for its own. Parts lie in one folder, from which all put them together.
    """

    def __init__(self, given: Pass) -> None:
        assert given.weights is not None
        self.given, self.settings, self.weights = given, given.stage.training, given.weights
        self.methods: list[Method] = list(given.stage.methods.values())
        self.seconds = {"training": 0.0, "finishing": 0.0}
        self.view = families.view(self.weights.model)
        self.kept = KeptOutputs(given.work, self.view)
        self.record = compressed_of(self.weights.model)

    @staticmethod
    def gives(stage: Stage) -> Needs:
        return "inputs"

    def run(self, student: Any) -> Any:
        work, blocks = self.given.work, self.view.blocks
        give_back_memory()  # what it took to make tokens of the text
        called_first = rehearse(type(student), student.config)
        torch.manual_seed(self.settings.seed)
        self.readings = Readings(self.given.stage, self.given.examples, work.main)
        loose = [matrix for matrix in self.view.matrices if matrix.layer is None]
        front = [m for m in loose if m.kind == "embedding" or m.name in called_first]
        self.front = [path for matrix in front for path in (matrix.name, *matrix.tied)]
        self.front_reads = any(matrix.kind != "embedding" or matrix.tied for matrix in front)
        self.tail = [path for matrix in loose if matrix not in front for path in (matrix.name, *matrix.tied)]
        with together():  # all look before any writes
            undone = self.kept.undone()
        mine = share(undone)
        start = self._start(mine)
        if not self.given.trained:
            work.save_state({}, {"stage": self.given.number})  # from here on there is something to resume
            work.forget_metrics_after(self.given.number, start)
        with together(), progress("blocks", len(blocks), start, work.main) as show:
            packed_first = self.begin()
            for number in range(start, len(blocks)):
                if number in mine:
                    self.block(number)
                else:
                    self.pass_by(number)
                show(number + 1)
            rest = self.end()
        student.compressed = self.record
        self.models.clear()
        give_back_memory()
        return assemble(student, [rest, packed_first, *map(self.kept.read, range(len(blocks)))])

    def apply(self, model: Any, methods: Sequence[Method]) -> NoReturn:
        raise AbridgedError("block by block, there is no second student to compare with")

    # ---- what stands before the blocks, a block, and what stands after them

    def begin(self) -> PackedPart:
        """Change and pack what the model reads tokens with. Every model then has what it needs outside of its blocks,
        but for the matrices after them."""
        teacher = copy.deepcopy(self.weights.model)
        late = {name for path in self.tail for name in within(teacher, path)}
        self.weights.fill(teacher, [name for name in outside(teacher, self.view.blocks) if name not in late])
        self.models = [teacher]
        self.attached: list[Attached] = []  # to what stands outside of the blocks, until the end
        scoped = [method.within(part_of(self.view, self.front)) for method in self.methods]
        if reads := self.front_reads and any(method is not None and method.passes for method in scoped):
            self._first_pass()
        for method in self.methods:
            self.models.append(copy.deepcopy(self.models[-1]))
            self._build(method, self.models[-1], self.front, self._calibrate_front, self.attached)
        part, modules = pack_part(self.models[-1], self.front)
        for path, packed in modules.items():
            self.models[-1].set_submodule(path, packed)
        if reads:
            self.kept.forget("first")
        give_back_memory()
        swapped = tuple(f"{path}." for path in modules)  # all else, biases too, is packed when all is finished
        kept = {n: t for n, t in part.tensors.items() if n.startswith(swapped) and not n.endswith(".bias")}
        return PackedPart(part.specs, kept)

    def block(self, number: int) -> None:
        """Carry the stage out on one block."""
        began, path, trains = time.perf_counter(), self.view.blocks[number], self.given.stage.trains
        attached: list[Attached] = []
        self.weights.fill(self.models[0], within(self.models[0], path))
        self._advance(0, number)
        for m, method in enumerate(self.methods, 1):
            again = m == 1 and trains and self.given.stage.blocks.inputs == "quantized"  # the teacher's runs once more
            self._hand_on(path, m, keep=again)
            self._build(method, self.models[m], [path], self._calibrate(m, number), attached)
            if m < len(self.methods) or not trains:
                self._advance(m, number)
        self.seconds["finishing"] += time.perf_counter() - began
        if trains:
            began = time.perf_counter()
            self._train(number, attached)
            self._advance(len(self.methods), number)
            self.seconds["training"] += time.perf_counter() - began
        with ExitStack() as kept:  # the next blocks still read what stands outside of them
            for model in self.models[1:]:
                kept.enter_context(unchanged(model, outside(model, [path])))
            self._finish(attached)
        self.kept.write(number, pack_part(self.models[-1], [path])[0])
        self._let_go(path, *self.models)

    def pass_by(self, number: int) -> None:
        """Let the teacher alone go through a block that is another process's, or done."""
        path = self.view.blocks[number]
        self.weights.fill(self.models[0], within(self.models[0], path))
        self._advance(0, number)
        self._let_go(path, self.models[0])
        self.kept.forget(before=number)

    def end(self) -> PackedPart:
        """Change what stands after the blocks, and pack all that has values by now."""
        self.weights.fill(self.models[0], [name for path in self.tail for name in within(self.models[0], path)])
        for m, method in enumerate(self.methods, 1):
            for path in self.tail:
                self._hand_on(path, m)
            self._build(method, self.models[m], self.tail, self._calibrate(m, len(self.view.blocks)), self.attached)
        self._finish(self.attached)
        for note in [note for notes in self.record.notes.values() for note in notes] if self.given.work.main else ():
            print(f"warning: {note}", file=sys.stderr)
        return pack_part(self.models[-1])[0]

    def _hand_on(self, path: str, m: int, keep: bool = False) -> None:
        """Let the m-th model go on from what the one before has made of a module, which it does not need any more."""
        found = self.models[m - 1].get_submodule(path)
        self.models[m].set_submodule(path, copy.deepcopy(found) if keep else found)
        if not keep:
            self._let_go(path, self.models[m - 1])

    def _let_go(self, path: str, *models: Any) -> None:
        for model in models:
            model.set_submodule(path, copy.deepcopy(self.weights.model.get_submodule(path)))
        give_back_memory()  # the allocator would keep it, and take more for matrices of other sizes

    def _start(self, mine: Sequence[int]) -> int:
        """The block to begin with: the first of this process's; where what the one before it puts out is not kept, the
        first after one of which it is."""
        first = next(iter(mine), len(self.view.blocks))
        kept = (n for n in reversed(range(first)) if all(self.kept.has(n, 0, key) for key in self.readings.all_keys))
        return next(kept, -1) + 1

    # ---- what methods are given

    def _build(
        self, method: Method, model: Any, paths: Sequence[str], calibrate: Calibrate, attached: list[Attached]
    ) -> None:
        part = part_of(families.view(model), paths)
        here = method.within(part)
        if here is not None:
            model.compressed = self.record  # of all that was done so far, to whichever model
            attached.append(here.build(model, part, calibrate))
            self.record = compressed_of(model)

    def _finish(self, attached: list[Attached]) -> None:
        for one in attached:
            one.model.compressed = self.record
            self.record = one.finish()
        self.models[-1].compressed = self.record

    def _calibrate(self, m: int, number: int) -> Calibrate:
        """What the m-th method runs data with: up to the block of that number, or through what comes after the last.

        Through the m-th model, which it changes, or through a copy of what it has found.
        """
        inputs = self.given.stage.blocks.inputs
        changed, found = {"crossed": (m, m - 1), "quantized": (m, m), "full": (m - 1, m - 1)}[inputs]

        def calibrate(model: nn.Module, tokens: int | None = None) -> None:
            if tokens is None:  # before anything is changed
                stream, kind = m - 1, "few"
            else:
                stream, kind = changed if model is self.models[m] else found, "many"
            for key in self.readings.keys[kind]:
                self._pass(model, stream, number, key)

        return calibrate

    def _calibrate_front(self, model: nn.Module, tokens: int | None = None) -> None:
        """What reads the embedding beside the model, a head that is tied to it, is given what the teacher's last block
        puts out."""
        late = [name for path in self.tail for name in within(model, path)]
        self.weights.fill(model, late)
        for key in self.readings.keys["few" if tokens is None else "many"]:
            self._pass(model, "first", len(self.view.blocks), key)
        empty(model, late)

    def _first_pass(self) -> None:
        """One pass of the teacher before all others, of which the last block's outputs are kept."""
        teacher = self.models[0]
        for number, path in enumerate(self.view.blocks):
            self.weights.fill(teacher, within(teacher, path))
            for key in self.readings.keys["few"] + self.readings.keys["many"]:
                self.kept.put(number, "first", key, self._pass(teacher, "first", number, key))
            empty(teacher, within(teacher, path))
            self.kept.forget("first", before=number)
            give_back_memory()

    # ---- passes

    def _advance(self, stream: int, number: int) -> None:
        """Keep what a model's block puts out on all that is read; the last model's, where anything asks for it."""
        if stream == len(self.methods) and self.given.stage.blocks.inputs == "full":
            return
        for key in self.readings.all_keys:
            self.kept.put(number, stream, key, self._pass(self.models[stream], stream, number, key))

    @torch.no_grad()
    def _pass(self, model: Any, stream: Stream, number: int, key: str) -> Any:
        """What the block of that number puts out in `model`, on what the blocks before it put out in the `stream`-th
        model, whose embeddings are used; after the last block, what `model` answers."""
        with evaluating(model), self.readings.precision(key):
            return self._run(model, stream, number, key)

    def _run(self, model: Any, stream: Stream, number: int, key: str) -> Any:
        path = self.view.blocks[number] if number < len(self.view.blocks) else None
        batch, done = self.readings[key].to(self.given.device), self.kept.standing(number, stream, key)
        owner = model if stream == "first" else self.models[stream]
        others = {} if owner is model else {name: owner.get_submodule(name) for name in self.front}
        with lent(model, others):
            return run_to(model, path, batch.model_inputs, done)

    def _train(self, number: int, attached: list[Attached]) -> None:
        """Train the last model's block to put out what the teacher's does."""
        student, last, inputs = self.models[-1], len(self.methods), self.given.stage.blocks.inputs
        stream = 0 if inputs == "full" else last

        def outputs(key: str) -> tuple[Any, Any, Tensor | None]:
            found = self._run(student, stream, number, key)
            wanted = self._pass(self.models[0], last, number, key) if inputs == "quantized" else None
            wanted = self.kept.get(number, 0, key) if wanted is None else wanted
            given = self.readings[key].inputs
            masks = (given.get(name) for name in ("decoder_attention_mask", "attention_mask"))
            counts = next((m for m in masks if m is not None and m.shape == hidden_of(found).shape[:2]), None)
            return found, wanted, counts

        errors = train_block(
            student.get_submodule(self.view.blocks[number]),
            attached,
            groups_of(attached),
            self.settings,
            self.readings.keys["training"],
            outputs,
            seed=self.settings.seed * 1_000_003 + number,
        )
        told = {"event": "block", "stage": self.given.number, "step": number + 1}
        self.given.work.log({**told, "error_at_first": errors[0], "error": errors[1]})


def part_of(view: View, paths: Sequence[str]) -> View:
    """The view of what is at and below some modules."""

    def inside(name: str) -> bool:
        return any(name == path or name.startswith(f"{path}.") for path in paths)

    return replace(
        view,
        matrices=[matrix for matrix in view.matrices if inside(matrix.name)],
        attentions=[path for path in view.attentions if inside(path)],
        positions=[path for path in view.positions if inside(path)],
        parts=[part for part in view.parts if inside(part.output)],
        norms=[path for path in view.norms if inside(path)],
    )

"""What a run block by block keeps on disk: what blocks put out, for as long as the next ones need it, and packed parts.

The system's page cache holds as much of it in memory as there is room for; a run that is interrupted goes on from it.
"""

from __future__ import annotations

from typing import Any

from accelerate import PartialState

from abridged.checkpoint.pack import PackedPart
from abridged.core.errors import AbridgedError
from abridged.families import View
from abridged.storage.format import parse_module
from abridged.training.runners.passes import as_output, as_tensors
from abridged.training.workspace import Workspace


class KeptOutputs:
    """Outputs by number of the block, name of the model that made them (`stream`), and batch (`key`), of each process
    its own; packed parts are of all."""

    def __init__(self, work: Workspace, view: View) -> None:
        self.work, self.blocks = work, view.blocks
        self.stacks = [path.rpartition(".")[0] for path in view.blocks]
        self.process = PartialState().process_index

    def undone(self) -> list[int]:
        """The blocks whose packed parts are not there."""
        return [number for number, _ in enumerate(self.blocks) if not self.work.has_part(_part(number))]

    def has(self, number: int, stream: int | str, key: str) -> bool:
        """Whether there is what a block put out."""
        return self.work.has_part(self._output(number, stream, key))

    def put(self, number: int, stream: int | str, key: str, output: Any) -> None:
        """Keep what a block puts out.

        Raises:
            AbridgedError: nothing could stand for it; the disk is full.
        """
        tensors, count = as_tensors(output)
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.work.save_part(self._output(number, stream, key), tensors, {"count": count})

    def get(self, number: int, stream: int | str, key: str) -> Any:
        """What was put."""
        found = self.work.load_part(self._output(number, stream, key))
        if found is None:
            raise AbridgedError(f"{self.work.parts} lacks what block {number + 1} put out: begin anew with --overwrite")
        return as_output(found[0], found[1]["count"])

    def standing(self, before: int, stream: int | str, key: str) -> dict[str, Any]:
        """{block: what stands for its output} of all blocks before the one of that number: for each what the last of
        them in its list put out, since only that is read."""
        last = {stack: number for number, stack in enumerate(self.stacks[:before])}
        outputs = {stack: self.get(number, stream, key) for stack, number in last.items()}
        return {path: outputs[stack] for path, stack in zip(self.blocks[:before], self.stacks[:before], strict=True)}

    def write(self, number: int, part: PackedPart) -> None:
        """Write a block's packed part; from here on a resumed run goes on after it. Outputs that nothing will read any
        more are let go."""
        specs = {path: spec.model_dump(mode="json", exclude_none=True) for path, spec in part.specs.items()}
        self.work.save_part(_part(number), part.tensors, {"specs": specs})
        self.forget(before=number)

    def read(self, number: int) -> PackedPart:
        """What was written."""
        found = self.work.load_part(_part(number))
        if found is None:
            raise AbridgedError(f"{self.work.parts} lacks block {number + 1}: begin anew with --overwrite")
        return PackedPart({path: parse_module(path, spec) for path, spec in found[1]["specs"].items()}, found[0])

    def forget(self, stream: int | str = "*", before: int | None = None) -> None:
        """Let go of the outputs of a stream, or of all; `before` a block, those that none from it on will read."""
        ends = {len(self.stacks) - 1 - self.stacks[::-1].index(stack) for stack in self.stacks}
        for number in range(len(self.blocks) if before is None else before):
            if before is None or number not in ends:
                self.work.forget_parts(self._output(number, stream, "*"))

    def _output(self, number: int, stream: int | str, key: str) -> str:
        return f"output-{self.process}-{number}-{stream}-{key}"


def _part(number: int) -> str:
    return f"block-{number}"

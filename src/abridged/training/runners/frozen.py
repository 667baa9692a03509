"""Weights that stay as they are: only what methods add is trained, and a block has its weights while it runs."""

from __future__ import annotations

from typing import Any

from abridged.methods.base import Attached
from abridged.storage.compressed import record
from abridged.training.runners.base import Pass
from abridged.training.runners.rehearsal import rehearse
from abridged.training.runners.whole import Whole


class Frozen(Whole):
    """A runner for pruning models whose weights, gradients and optimiser do not fit.

    Teacher and student are streamed models (`Weights.on_demand`): both are lent the matrices of a block from the same
    memory-mapped files while it runs, forward and, since blocks are checkpointed, once more backward. Gradients and
    AdamW's averages are those of masks or adapters alone. What a cut leaves is kept in memory, in the files' type. Its
    results are those of `Whole` with the same settings: a block computes in the same precision.
    """

    def __init__(self, given: Pass) -> None:
        super().__init__(given)
        assert given.weights is not None
        self.weights = given.weights
        self.settings = self.settings.model_copy(update={"gradient_checkpointing": True, "compile": "no"})
        self.recomputing = {"context_fn": given.weights.contexts}

    def attach(self, student: Any) -> list[Attached]:
        if not self.given.number:
            rehearse(type(student), student.config)
        return super().attach(student)

    def finish(self, student: Any, methods: list[Attached]) -> None:
        super().finish(student, methods)
        dtype = self.weights.main_dtype
        for parameter in student.parameters():  # what is measured is what is stored
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
        record(student, unquantized_dtype=str(dtype).removeprefix("torch."))

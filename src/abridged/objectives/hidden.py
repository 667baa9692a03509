"""Hidden-state distillation: the student's layers against the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abridged.data.batch import Batch
from abridged.errors import AbridgedError
from abridged.objectives.base import ObjectiveContext, Outputs, TeacherOutputs, Term
from abridged.objectives.settings import Hidden


def layer_map(student_states: int, teacher_states: int) -> dict[int, int]:
    """Every student state to a teacher state, first to first and last to last, evenly spread between."""
    last = max(1, student_states - 1)
    return {i: round(i * (teacher_states - 1) / last) for i in range(student_states)}


class HiddenDistillation(Term):
    """Mean squared error per number, averaged over the mapped layers and the tokens that count.

    Where the teacher is wider or narrower, one trained linear map takes the student's states to its size.
    """

    def __init__(self, settings: Hidden, context: ObjectiveContext) -> None:
        super().__init__()
        self.settings = settings
        same = context.hidden_size == context.teacher_hidden_size
        self.projection = nn.Identity() if same else nn.Linear(context.hidden_size, context.teacher_hidden_size)

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if not isinstance(teacher, Outputs) or teacher.hidden_states is None or student.hidden_states is None:
            raise AbridgedError("hidden-state distillation needs the teacher in memory")
        ours, theirs = student.hidden_states, teacher.hidden_states
        pairs = self.settings.layers or _layer_map(student, teacher)
        beyond = [f"{i}: {j}" for i, j in pairs.items() if not (0 <= i < len(ours) and 0 <= j < len(theirs))]
        if beyond:
            raise AbridgedError(
                f"objectives.hidden.layers has {beyond[0]}, but the student's states end at {len(ours) - 1} and the "
                f"teacher's at {len(theirs) - 1}"
            )
        errors = []
        for i, j in pairs.items():
            counted = batch.counted if i >= _encoder_states(student) else batch.source_mask
            assert counted is not None
            error = (self.projection(ours[i]).float() - theirs[j].detach().float()).square().mean(-1)
            errors.append((error * counted).sum() / counted.sum().clamp_min(1))
        return torch.stack(errors).mean()


def _encoder_states(outputs: Outputs) -> int:
    """How many of the hidden states are an encoder's."""
    return outputs.encoder_layers + 1 if outputs.encoder_layers else 0


def _layer_map(student: Outputs, teacher: Outputs) -> dict[int, int]:
    """`layer_map` of both models' states; an encoder's to an encoder's."""
    assert student.hidden_states is not None
    assert teacher.hidden_states is not None
    ours, theirs = _encoder_states(student), _encoder_states(teacher)
    encoder = layer_map(ours, theirs) if ours else {}
    decoder = layer_map(len(student.hidden_states) - ours, len(teacher.hidden_states) - theirs)
    return encoder | {ours + i: theirs + j for i, j in decoder.items()}

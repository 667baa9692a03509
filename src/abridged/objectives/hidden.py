"""Hidden-state distillation: the student's layers against the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from abridged.data.batch import Batch
from abridged.errors import AbridgedError
from abridged.objectives.base import ObjectiveContext, Outputs, TeacherOutputs, Term
from abridged.objectives.layers import layer_pairs, mean_over_rows, rows_that_count
from abridged.objectives.settings import Hidden


class HiddenDistillation(Term):
    """Mean squared error per number, averaged over the mapped layers and the tokens that count.

    Where the teacher is wider or narrower, one trained linear map takes the student's states to its size; where the
    student has a part of the teacher's very units, or combinations of them, these are compared.
    """

    def __init__(self, settings: Hidden, context: ObjectiveContext) -> None:
        super().__init__()
        self.settings = settings
        same = context.hidden_size == context.teacher_hidden_size
        self.units = None if same else context.hidden_units
        self.projection = (
            nn.Identity()
            if same or self.units is not None
            else nn.Linear(context.hidden_size, context.teacher_hidden_size)
        )

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if not isinstance(teacher, Outputs) or teacher.hidden_states is None or student.hidden_states is None:
            raise AbridgedError("hidden-state distillation needs the teacher in memory")
        ours, theirs = student.hidden_states, teacher.hidden_states
        pairs = layer_pairs("hidden", self.settings.layers, _parts(student), _parts(teacher))
        errors = []
        for i, j in pairs.items():
            counted = rows_that_count(batch, encoder=len(_parts(student)) == 2 and i < _parts(student)[0])
            their = theirs[j].detach()
            if self.units is not None and their.shape[-1] != ours[i].shape[-1]:
                their = narrowed(their, self.units)
            error = (self.projection(ours[i]).float() - their.float()).square().mean(-1)
            errors.append(mean_over_rows(error, counted))
        return torch.stack(errors).mean()


def narrowed(states: Tensor, units: Tensor) -> Tensor:
    """Of states (…, d) the units (h,), or combinations of them, the columns of a float (d, h)."""
    units = units.to(states.device)
    return states @ units.to(states.dtype) if units.is_floating_point() else states[..., units]


def _parts(outputs: Outputs) -> list[int]:
    """How many hidden states the encoder has, where there is one, and the decoder."""
    assert outputs.hidden_states is not None
    encoder = outputs.encoder_layers
    return [encoder + 1, len(outputs.hidden_states) - encoder - 1] if encoder else [len(outputs.hidden_states)]

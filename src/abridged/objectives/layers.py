"""Distillation layer by layer: hidden states, attention and feed-forward parts of the student against the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import ObjectiveContext, Outputs, TeacherOutputs, Term
from abridged.objectives.settings import Hidden

_LEAST = 1e-9  #: of a probability, so that its logarithm is finite


class LayerDistillation(Term):
    """How far what the student's layers give is from what the teacher's do, averaged over mapped layers and the rows
    that count.

    A subclass says which of the `Outputs` that are (`field`), and how far two layers' are `apart`.
    """

    name: ClassVar[str]  #: in recipes
    field: ClassVar[str]
    called: ClassVar[str]  #: in messages
    before: ClassVar[int] = 0  #: what there is of an encoder beside its layers
    stacks: ClassVar[int] = 1  #: of equal size, that come after an encoder's

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        ours, theirs = getattr(student, self.field), getattr(teacher, self.field, None)
        if ours is None or theirs is None:
            raise AbridgedError(f"{self.called} distillation needs the teacher in memory")
        assert isinstance(teacher, Outputs)
        parts = self._parts(student)
        errors = []
        for i, j in layer_pairs(self.name, self.settings.layers, parts, self._parts(teacher)).items():
            found = self.apart(ours[i], theirs[j].detach())
            counted = batch.counted
            if len(parts) > 1 and i < parts[0]:
                if "pixel_values" in batch.inputs:  # of pictures everything counts
                    counted = torch.ones(1, 1, dtype=torch.bool, device=found.device)
                elif batch.source_mask is not None:
                    counted = batch.source_mask.bool()
            counted = counted.expand_as(found)
            errors.append((found * counted).sum() / counted.sum().clamp_min(1))
        return torch.stack(errors).mean()

    def apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """(B, rows) of what a layer of the student and one of the teacher give."""
        raise NotImplementedError

    def _parts(self, outputs: Outputs) -> list[int]:
        """How many layers there are of each kind: an encoder's, where there is one, and what comes after."""
        count = len(getattr(outputs, self.field))
        if not outputs.encoder_layers:
            return [count]
        encoder = outputs.encoder_layers + self.before
        return [encoder, *[(count - encoder) // self.stacks] * self.stacks]


class HiddenDistillation(LayerDistillation):
    """Mean squared error per number of hidden states.

    Where the teacher is wider or narrower, one trained linear map takes the student's states to its size; where the
    student has a part of the teacher's very units, or combinations of them, these are compared.
    """

    name, field, called, before = "hidden", "hidden_states", "hidden-state", 1

    def __init__(self, settings: Hidden, context: ObjectiveContext) -> None:
        super().__init__(settings)
        same = context.hidden_size == context.teacher_hidden_size
        self.units = None if same else context.hidden_units
        self.projection = (
            nn.Identity()
            if same or self.units is not None
            else nn.Linear(context.hidden_size, context.teacher_hidden_size)
        )

    def apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if self.units is not None and theirs.shape[-1] != ours.shape[-1]:
            theirs = narrowed(theirs, self.units)
        return (self.projection(ours).float() - theirs.float()).square().mean(-1)


class FeedForwardDistillation(LayerDistillation):
    """Mean squared error per number of what feed-forward parts give.

    Source: ILKD's third term (Edalati et al., ACL 2022, arXiv:2110.08152, section 3.2).
    """

    name, field, called = "feed_forward", "feed_forward", "feed-forward"

    def apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if ours.shape != theirs.shape:
            raise AbridgedError(
                f"feed-forward distillation compares like with like: the student's is {ours.shape[-1]} wide, the "
                f"teacher's {theirs.shape[-1]}"
            )
        return (ours.float() - theirs.float()).square().mean(-1)


class AttentionDistillation(LayerDistillation):
    """Divergence of the heads' attention distributions, averaged over heads.

    Either KL(teacher || student) in nats (ILKD: Edalati et al., ACL 2022, arXiv:2110.08152, section 3.2), or the
    squared difference of the probabilities, summed over a row.
    """

    name, field, called, stacks = "attention", "attentions", "attention", 2  # the decoder's, and those across

    def apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        if ours.shape != theirs.shape:
            raise AbridgedError(
                f"attention distillation compares head with head: the student has {ours.shape[1]}, the teacher "
                f"{theirs.shape[1]}"
            )
        q, p = ours.float(), theirs.float()
        if self.settings.loss == "mse":
            return (p - q).square().sum(-1).mean(1)
        return (p * (p.clamp_min(_LEAST).log() - q.clamp_min(_LEAST).log())).sum(-1).mean(1)


def narrowed(states: Tensor, units: Tensor) -> Tensor:
    """Of states (…, d) the units (h,), or combinations of them, the columns of a float (d, h)."""
    units = units.to(states.device)
    return states @ units.to(states.dtype) if units.is_floating_point() else states[..., units]


def widened(states: Tensor, units: Tensor, width: int) -> Tensor:
    """Of states (…, h) of `narrowed` ones, what they are among all units, (…, width): 0 where units are gone."""
    units = units.to(states.device)
    if units.is_floating_point():
        return states @ units.to(states.dtype).T
    return states.new_zeros(*states.shape[:-1], width).index_copy(-1, units, states)


def layer_map(student: int, teacher: int) -> dict[int, int]:
    """Every layer of the student to one of the teacher's, first to first and last to last, evenly spread between."""
    last = max(1, student - 1)
    return {i: round(i * (teacher - 1) / last) for i in range(student)}


def layer_maps(student: Sequence[int], teacher: Sequence[int]) -> dict[int, int]:
    """`layer_map` of layers that come in parts, such as an encoder's and then a decoder's: part to part."""
    found: dict[int, int] = {}
    ours = theirs = 0
    for mine, its in zip(student, teacher, strict=True):
        found |= {ours + i: theirs + j for i, j in layer_map(mine, its).items()}
        ours, theirs = ours + mine, theirs + its
    return found


def layer_pairs(
    name: str, chosen: dict[int, int] | None, student: Sequence[int], teacher: Sequence[int]
) -> dict[int, int]:
    """The layers that an objective called `name` compares: those `chosen` in a recipe, or `layer_maps`.

    Raises AbridgedError where a layer is chosen that student or teacher does not have.
    """
    pairs, ours, theirs = chosen or layer_maps(student, teacher), sum(student), sum(teacher)
    beyond = [f"{i}: {j}" for i, j in pairs.items() if not (0 <= i < ours and 0 <= j < theirs)]
    if beyond:
        raise AbridgedError(
            f"objectives.{name}.layers has {beyond[0]}, but the student's end at {ours - 1} and the teacher's at "
            f"{theirs - 1}"
        )
    return pairs

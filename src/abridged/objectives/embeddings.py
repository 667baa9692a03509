"""Distillation of vectors: of texts, and of videos and texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import Embeddings, ObjectiveContext, Outputs, TeacherOutputs, Term, VideoEmbeddings
from abridged.objectives.layers import widened
from abridged.objectives.settings import EmbeddingDistillation as Settings


class EmbeddingDistillation(Term):
    """Squared distance of the vectors (0 to 4: twice what their cosine is below 1), and KL in nats of whom of the batch
    a vector is like: of texts among each other, or where there are videos, between texts and videos both ways.

    Where the student was cut to some of the teacher's units, or combinations of them, its vectors stand for the
    teacher's with nothing in the others.
    """

    settings: Settings

    def __init__(self, settings: Settings, context: ObjectiveContext) -> None:
        super().__init__(settings)
        self.units, self.width = context.hidden_units, context.teacher_hidden_size

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if not isinstance(teacher, Outputs):
            raise AbridgedError("the distillation of vectors needs the teacher in memory")
        ours, theirs = student.embeddings, teacher.embeddings
        if ours is None or theirs is None:
            raise AbridgedError("the objective embeddings was asked of a model that gives no vectors")
        if ours.text.shape != theirs.text.shape and self.units is not None and not isinstance(ours, VideoEmbeddings):
            ours = Embeddings(widened(ours.text, self.units, self.width))
        if ours.text.shape != theirs.text.shape:
            raise AbridgedError(
                f"the student's vectors are {ours.text.shape[1]} wide and the teacher's {theirs.text.shape[1]}: the "
                "objective embeddings is for vectors of one width"
            )
        total = _distance(ours.text, theirs.text)
        if isinstance(ours, VideoEmbeddings) and isinstance(theirs, VideoEmbeddings):
            total = total + _distance(ours.video, theirs.video)
            total = total + self.settings.frames * _distance(ours.frames, theirs.frames)
        if self.settings.similarities and len(ours.text) > 1:
            ways = zip(_similarities(ours), _similarities(theirs), strict=True)
            found = [_divergence(q / self.settings.temperature, p / self.settings.temperature) for q, p in ways]
            total = total + self.settings.similarities * torch.stack(found).mean()
        return total


def _distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.float() - theirs.detach().float()).square().sum(-1).mean()


def _similarities(found: Embeddings) -> tuple[Tensor, ...]:
    """Cosines (B, B) of videos with texts and of texts with videos; or (B, B - 1) of each text with the others, since
    that with itself says nothing."""
    if isinstance(found, VideoEmbeddings):
        cosines = (found.video @ found.text.T).float()
        return cosines, cosines.T
    count = len(found.text)
    others = ~torch.eye(count, dtype=torch.bool, device=found.text.device)
    return ((found.text @ found.text.T).float()[others].view(count, count - 1),)


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over rows of KL(theirs ‖ ours) of the softmax over them, in nats."""
    return F.kl_div(ours.log_softmax(-1), theirs.detach().log_softmax(-1), reduction="batchmean", log_target=True)

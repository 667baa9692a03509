"""Cross-entropy with the text's own next tokens, or with the labels of texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from abridged.data.batch import Batch
from abridged.objectives.base import Outputs, TeacherOutputs, Term
from abridged.objectives.chunked import label_cross_entropy


class LabelCrossEntropy(Term):
    """Mean cross-entropy, in nats, over the tokens that count, or over labelled texts."""

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if student.label_logits is not None:
            return text_label_loss(student.label_logits, batch.labels)
        head = student.language_head
        return label_cross_entropy(head.inputs(student.last_hidden), *head.weights(), batch.labels)


def text_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of logits (..., C) with labels (...); of scores (B,) the mean squared error."""
    if labels.is_floating_point():
        return F.mse_loss(logits.float().squeeze(-1), labels)
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())

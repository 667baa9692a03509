"""Cross-entropy with the text's own next tokens."""

from __future__ import annotations

from torch import Tensor

from abridged.data.batch import Batch
from abridged.objectives.base import Outputs, TeacherOutputs, Term
from abridged.objectives.chunked import label_cross_entropy


class LabelCrossEntropy(Term):
    """Mean cross-entropy, in nats, over the tokens that count."""

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        weight, bias = student.head.weights()
        return label_cross_entropy(student.head.inputs(student.last_hidden), weight, bias, batch.labels)

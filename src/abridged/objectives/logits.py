"""The student's next-token distributions, or labels of texts, against the text's own and against the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import Outputs, TeacherOutputs, Term, VideoEmbeddings
from abridged.objectives.chunked import label_cross_entropy, label_losses, teacher_divergence, uniform_weights
from abridged.objectives.settings import Logits


class LabelCrossEntropy(Term):
    """Mean cross-entropy, in nats, over the tokens that count, or over labelled texts."""

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if student.label_logits is not None:
            labels = batch.labels if batch.labels_examples else batch.labels[batch.labelled]
            return text_label_loss(student.label_logits, labels)
        head = student.language_head
        hidden = head.inputs(student.last_hidden)
        return label_cross_entropy(hidden, *head.weights(), batch.labels, cap=head.cap)


def text_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of logits (..., C) with labels (...), 0 of none; of scores (B,) the mean squared
    error."""
    if labels.is_floating_point():
        return F.mse_loss(logits.float().squeeze(-1), labels)
    return F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum") / max(1, labels.numel())


def tsld_weights(losses: Tensor, counted: Tensor, temperature: float = 10.0) -> Tensor:
    """Token weights (B*T,) in proportion to exp(teacher's cross-entropy / temperature), one sequence summing to 1/B.

    Source: Kim et al., "Token-Scaled Logit Distillation", arXiv:2308.06744, section 4.

    Args:
        losses: (B, T) the teacher's cross-entropy with the labels, in nats.
        counted: (B, T) bool, tokens that enter the loss.
        temperature: of the softmax over a sequence's tokens.
    """
    scores = (losses / temperature).masked_fill(~counted, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)  # a sequence of which nothing counts
    return (weights / counted.any(-1).sum().clamp_min(1)).flatten()


def text_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) in nats, mean over texts or tokens, of label logits (..., C), 0 where there are none; of
    scores (B, 1) the squared error."""
    student, teacher = student.float(), teacher.detach().float()
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    log_p, log_q = (x.flatten(0, -2).div(temperature).log_softmax(-1) for x in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / max(1, len(log_q)) * temperature**2


class LogitDistillation(Term):
    """KL(teacher || student) in nats per token that counts, or per labelled text."""

    settings: Logits

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if isinstance(teacher, Outputs) and student.embeddings is not None:
            return self._matched(student, teacher)
        if isinstance(teacher, Outputs) and student.label_logits is not None:
            assert teacher.label_logits is not None
            return text_divergence(student.label_logits, teacher.label_logits, self.settings.temperature)
        their_cap = None
        if isinstance(teacher, Outputs):
            theirs = teacher.language_head
            known, their_cap = (theirs.inputs(teacher.last_hidden), *theirs.weights()), theirs.cap
        elif teacher is not None and teacher.top_logits is not None:
            known = teacher.top_logits  # type: ignore[assignment]
            if teacher.top_logits.temperature != self.settings.temperature:
                raise AbridgedError(
                    f"the teacher cache was made at temperature {teacher.top_logits.temperature}, but "
                    f"objectives.logits.temperature is {self.settings.temperature}"
                )
        else:
            raise AbridgedError("logit distillation needs a teacher: none was given, or its cache holds no logits")
        if self.settings.token_weights == "tsld":
            if isinstance(known, tuple):
                losses = label_losses(*known, batch.labels, cap=their_cap)
            else:
                losses = -known.label_log_probability.float()
            weights = tsld_weights(losses, batch.counted, self.settings.tsld_temperature)
        else:
            weights = uniform_weights(batch.counted)
        head = student.language_head
        hidden = head.inputs(student.last_hidden)
        caps = {"cap": head.cap, "teacher_cap": their_cap}
        return teacher_divergence(hidden, *head.weights(), known, weights, self.settings.temperature, **caps)

    def _matched(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Of videos and texts: of whether each matches its own text, and its neighbour's in the batch."""
        ours, theirs = student.embeddings, teacher.embeddings
        if not isinstance(ours, VideoEmbeddings) or not isinstance(theirs, VideoEmbeddings):
            raise AbridgedError("the objective logits was asked of a model that gives vectors of texts alone")
        if ours.match is None or theirs.match is None:
            raise AbridgedError("the objective logits needs a model that matches videos to texts")
        own = torch.arange(len(ours.video), device=ours.video.device)
        pairs = torch.cat([own, own]), torch.cat([own, own.roll(1)])
        with torch.no_grad():
            wanted = theirs.match(*pairs)
        return text_divergence(ours.match(*pairs), wanted, self.settings.temperature)

"""Attention distillation: where the student's heads look, against where the teacher's do."""

from __future__ import annotations

import torch
from torch import Tensor

from abridged.data.batch import Batch
from abridged.errors import AbridgedError
from abridged.objectives.base import Outputs, TeacherOutputs, Term
from abridged.objectives.layers import layer_pairs, mean_over_rows, rows_that_count
from abridged.objectives.settings import Attention

_LEAST = 1e-9  #: of a probability, so that its logarithm is finite


class AttentionDistillation(Term):
    """Divergence of the heads' attention distributions, averaged over mapped layers, heads and the rows that count.

    Either KL(teacher || student) in nats (ILKD: Edalati et al., ACL 2022, arXiv:2110.08152, section 3.2), or the
    squared difference of the probabilities, summed over a row.
    """

    def __init__(self, settings: Attention) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if not isinstance(teacher, Outputs) or teacher.attentions is None or student.attentions is None:
            raise AbridgedError("attention distillation needs the teacher in memory")
        ours, theirs = student.attentions, teacher.attentions
        pairs = layer_pairs("attention", self.settings.layers, _parts(student), _parts(teacher))
        losses = []
        for i, j in pairs.items():
            q, p = ours[i].float(), theirs[j].detach().float()
            if q.shape != p.shape:
                raise AbridgedError(
                    f"attention distillation compares head with head: the student has {q.shape[1]}, the teacher "
                    f"{p.shape[1]}"
                )
            rows = self._divergence(p, q).mean(1)
            counted = rows_that_count(batch, encoder=i < student.encoder_layers)
            losses.append(mean_over_rows(rows, counted))
        return torch.stack(losses).mean()

    def _divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """(B, heads, rows) from two (B, heads, rows, columns)."""
        if self.settings.loss == "mse":
            return (p - q).square().sum(-1)
        return (p * (p.clamp_min(_LEAST).log() - q.clamp_min(_LEAST).log())).sum(-1)


def _parts(outputs: Outputs) -> list[int]:
    """How many layers of attention there are of each kind: encoder, decoder, across; or the one of a language model."""
    assert outputs.attentions is not None
    encoder = outputs.encoder_layers
    if not encoder:
        return [len(outputs.attentions)]
    decoder = (len(outputs.attentions) - encoder) // 2
    return [encoder, decoder, decoder]

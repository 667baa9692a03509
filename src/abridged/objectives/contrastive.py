"""Token-level contrastive distillation: each token's representation is to be told from those of other tokens.

Quantising makes the representations of different words alike; logits alone do not show it. Here every token of the
student is pulled towards the teacher's representation of the same token and away from those of other tokens
(QuantGPT, Tao et al., ACL 2022, arXiv:2203.10705, section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives.base import ObjectiveContext, Outputs, TeacherOutputs, Term
from abridged.objectives.chunked import entries
from abridged.objectives.settings import Contrastive
from abridged.runtime.weight import PackedWeight


class Bank(nn.Module):
    """`rows` vectors of `dimensions` numbers in host memory, q <- m * q + (1 - m) * h at each visit.

    A text has millions of positions, so that a vector is held in 8 bits a number and one scale, and the memory of
    a row is claimed from the system only when it is first visited. Not a buffer: those are broadcast among
    processes at every step, and moved to the accelerator. `state_dict` has the visited rows alone, and
    `load_state_dict` (not a copy into the state's tensors) brings them back exactly.
    """

    def __init__(self, rows: int, dimensions: int) -> None:
        super().__init__()
        try:
            self.levels = torch.empty(rows, dimensions, dtype=torch.int8)  # untouched pages take no memory
            self.scales = torch.zeros(rows)  # 0 = never visited
        except RuntimeError as error:
            raise AbridgedError(
                f"a memory bank of {rows} rows of {dimensions} does not fit into memory: set the contrastive "
                "objective's bank to vocabulary or none"
            ) from error

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) in FP32, 0 where never visited, and (..., 1) bool whether visited, for rows (...)."""
        places = rows.cpu()
        scales = self.scales[places].unsqueeze(-1)
        vectors = self.levels[places].float() * scales
        return vectors.to(rows.device), (scales > 0).to(rows.device)

    def smooth(self, rows: Tensor, hidden: Tensor, momentum: float) -> Tensor:
        """m * bank + (1 - m) * hidden, (..., D), where a row was visited, else hidden; gradients through hidden."""
        held, visited = self.read(rows)
        return torch.where(visited, momentum * held + (1 - momentum) * hidden, hidden)

    @torch.no_grad()
    def update(self, rows: Tensor, hidden: Tensor, momentum: float) -> None:
        """Takes up hidden (N, D) at rows (N,); a row that occurs more than once takes the mean."""
        unique, inverse, counts = rows.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(unique), hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        means.index_add_(0, inverse, hidden).div_(counts.unsqueeze(-1))
        values = self.smooth(unique, means, momentum).cpu()
        scales = (values.abs().amax(-1) / 127).clamp_min(1e-30).float()
        places = unique.cpu()
        self.levels[places] = (values / scales.unsqueeze(-1)).round().to(torch.int8)
        self.scales[places] = scales

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        rows = self.scales.nonzero().squeeze(-1)
        held = {"rows": rows, "levels": self.levels[rows], "scales": self.scales[rows]}
        destination.update({prefix + name: tensor for name, tensor in held.items()})

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        names = [prefix + name for name in ("rows", "levels", "scales")]
        absent = [name for name in names if name not in state_dict]
        if absent:
            missing_keys.extend(absent)
            return
        rows, levels, scales = (state_dict[name] for name in names)
        if levels.shape[1:] != self.levels.shape[1:] or (len(rows) and int(rows.max()) >= len(self.levels)):
            error_msgs.append(f"{prefix}levels: a memory bank of another size")
            return
        self.scales.zero_()
        self.levels[rows] = levels
        self.scales[rows] = scales


def contrastive_loss(
    queries: Tensor,
    positives: Tensor,
    candidates: Tensor,
    excluded: Tensor,
    counted: Tensor,
    temperature: float,
) -> Tensor:
    """Mean over tokens i of -log( exp(s(q_i, p_i)/t) / (exp(s(q_i, p_i)/t) + sum_j exp(s(q_i, c_j)/t)) ), s = cosine.

    Args:
        queries: (B, T, D), the student's.
        positives: (B, T, D), the teacher's representations of the same tokens.
        candidates: (B, N, D) or (1, N, D), what each token of a sequence is set against.
        excluded: (B, T, N) bool, candidates that are no negatives of a token.
        counted: (B, T) bool, tokens that enter the mean.
        temperature: t.

    Returns:
        Scalar in the inputs' type.
    """
    queries = F.normalize(queries, dim=-1) / temperature
    positives, candidates = F.normalize(positives, dim=-1), F.normalize(candidates, dim=-1)
    similar = (queries * positives).sum(-1)
    others = torch.matmul(queries, candidates.transpose(-1, -2)).masked_fill(excluded, -torch.inf)
    losses = torch.cat([similar.unsqueeze(-1), others], -1).logsumexp(-1) - similar
    return (losses * counted).sum() / counted.sum().clamp_min(1)


class ContrastiveDistillation(Term):
    """Contrastive loss, in nats per token, of last hidden states through one linear projection.

    A query is q = m * bank + (1 - m) * h where the bank holds an earlier representation of the same token, else h;
    gradients flow through h alone. The bank takes up q after each step, so that all of a step's passes and
    processes see the same one. The projection is trained through the student's side; where the teacher's hidden
    size is another, it has a fixed random projection of its own.
    """

    def __init__(self, settings: Contrastive, context: ObjectiveContext) -> None:
        super().__init__(settings)
        self.context = context
        self.projection = nn.Linear(context.hidden_size, settings.dimensions)
        nn.init.orthogonal_(self.projection.weight)  # keeps the angles between hidden states, roughly
        nn.init.zeros_(self.projection.bias)
        self.teacher_projection: nn.Linear | None = None
        if context.teacher_hidden_size != context.hidden_size:
            self.teacher_projection = nn.Linear(context.teacher_hidden_size, settings.dimensions, bias=False)
            nn.init.orthogonal_(self.teacher_projection.weight).requires_grad_(False)
        rows = {"position": context.num_blocks * context.context, "vocabulary": context.vocab_size, "none": 0}
        self.bank = Bank(rows[settings.bank], settings.dimensions) if rows[settings.bank] else None
        self._pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        if teacher is None or teacher.last_hidden is None:
            raise AbridgedError(
                "the contrastive term needs a teacher: none was given, or its cache has no hidden states"
            )
        settings = self.settings
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            wide = torch.promote_types(student.last_hidden.dtype, torch.float32)
            hidden = self.projection(student.last_hidden.to(wide))
            positives = self._of_teacher(teacher.last_hidden.to(wide))
            queries = hidden if self.bank is None else self._smoothed(hidden, batch)
            candidates, candidate_ids, allowed = self._candidates(hidden, positives, teacher, batch)
            excluded = (batch.input_ids.unsqueeze(-1) == candidate_ids.unsqueeze(1)) | ~allowed.unsqueeze(1)
            return contrastive_loss(queries, positives, candidates, excluded, batch.counted, settings.temperature)

    def _of_teacher(self, states: Tensor) -> Tensor:
        """Projects the teacher's states (..., d') to (..., D), without gradients."""
        with torch.no_grad():
            return (self.teacher_projection or self.projection)(states)

    def _rows(self, batch: Batch) -> Tensor:
        """(B, T) the bank's row of each token."""
        if self.settings.bank == "vocabulary":
            return batch.input_ids
        offsets = torch.arange(batch.input_ids.shape[1], device=batch.index.device)
        return batch.index.unsqueeze(-1) * self.context.context + offsets

    def _smoothed(self, hidden: Tensor, batch: Batch) -> Tensor:
        assert self.bank is not None
        rows = self._rows(batch)
        if self.training and torch.is_grad_enabled():
            self._pending.append((rows[batch.counted], hidden.detach()[batch.counted]))
        return self.bank.smooth(rows, hidden, self.settings.momentum)

    def _candidates(
        self, hidden: Tensor, positives: Tensor, teacher: TeacherOutputs, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What tokens are set against: (B, N, D) representations, (B, N) ids, (B, N) bool whether they count."""
        ids, count = batch.input_ids, self.settings.num_negatives
        if self.settings.negatives == "vocabulary":
            if not isinstance(teacher, Outputs):
                raise AbridgedError("contrastive negatives 'vocabulary' need the teacher in memory")
            weight, _ = teacher.language_head.weights()
            drawn = torch.randint(entries(weight), (1, count or ids.shape[1]), device=ids.device)
            rows = weight.rows(drawn) if isinstance(weight, PackedWeight) else weight.detach()[drawn]
            return self._of_teacher(rows.to(hidden.dtype)), drawn, torch.ones_like(drawn).bool()
        states = positives if self.settings.negatives == "teacher" else hidden.detach()
        if count is None or count >= ids.shape[1]:
            return states, ids, batch.counted
        drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~batch.counted, -1).topk(count).indices
        picked = states.gather(1, drawn.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return picked, ids.gather(1, drawn), batch.counted.gather(1, drawn)

    def after_step(self, accelerator) -> None:
        if self.bank is None or not self._pending:
            return
        rows = torch.cat([rows for rows, _ in self._pending])
        hidden = torch.cat([hidden for _, hidden in self._pending])
        self._pending.clear()
        if accelerator.num_processes > 1:
            # Processes may have counted different numbers of tokens: row -1 fills up, and is dropped.
            rows, hidden = (accelerator.pad_across_processes(x.contiguous(), pad_index=-1) for x in (rows, hidden))
            rows, hidden = accelerator.gather(rows), accelerator.gather(hidden)
            rows, hidden = rows[rows >= 0], hidden[rows >= 0]
        self.bank.update(rows, hidden, self.settings.momentum)

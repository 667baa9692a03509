"""Losses on videos and texts: contrast, matching, frames and their captions, and order of events.

A batch of captions has a label for each example: examples of one label are of one video or of one text, and no
negatives of each other. A batch whose examples come with their twins in the other order (`Batch.twins`) is for
`EventOrder`, any other for the rest (`Term.is_for`), so that both kinds can take turns in one stage.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.objectives import video_settings as settings_of
from abridged.objectives.base import ObjectiveContext, Outputs, TeacherOutputs, Term, VideoEmbeddings, outputs_of


def embeddings_of(outputs: Outputs) -> VideoEmbeddings:
    """The vectors of a batch of videos and texts.

    Raises:
        AbridgedError: the model gives none.
    """
    if not isinstance(outputs.embeddings, VideoEmbeddings):
        raise AbridgedError("an objective on videos and texts was asked of a model that gives no vectors of them")
    return outputs.embeddings


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of -sum targets log softmax(logits), (R, C) both; -inf logits have targets of 0."""
    logs = logits.log_softmax(-1)
    return -(targets * torch.where(targets > 0, logs, torch.zeros_like(logs))).sum(-1).mean()


def with_turned(logits: Tensor, targets: Tensor, own: VideoEmbeddings, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and targets (B, C) of videos, and behind them those of the videos' own texts turned around, which are
    wrong (NegCLIP, Yuksekgonul et al., ICLR 2023, arXiv:2210.01936)."""
    if own.turned is None:
        return logits, targets
    there = _says_something(batch.inputs["turned_attention_mask"])
    wrong = torch.einsum("bd,bkd->bk", own.video, own.turned) / own.temperature
    wrong = wrong.masked_fill(~there, -torch.inf)
    return torch.cat([logits, wrong], 1), torch.cat([targets, torch.zeros_like(wrong)], 1)


class Contrast(Term):
    """VTC, as BLIP fine-tunes: in nats, the mean of both ways.

    With `momentum`, videos and texts are told from those of a slow copy of the encoders, of this batch and of a queue;
    targets are `soft_targets` times what the slow copy finds, and the rest the examples of the same label
    (salesforce/BLIP, models/blip_retrieval.py).
    """

    videos: Tensor  #: (queue, d)
    texts: Tensor  #: (queue, d)
    labels: Tensor  #: (queue,) -1 where nothing is yet
    place: Tensor  #: () where the next ones go

    def __init__(self, settings: settings_of.VideoTextContrast, context: ObjectiveContext) -> None:
        super().__init__(settings)
        self.slow: nn.Module | None = None
        self._model: list[nn.Module] = []  # in a list, so that it is not registered a second time
        if settings.momentum is None:
            return
        if context.model is None:
            raise AbridgedError("the contrast of videos and texts with momentum needs the model")
        self._model = [context.model]
        self.slow = copy.deepcopy(context.model).requires_grad_(False)
        size, width = min(settings.queue, context.num_blocks), int(context.model.config.image_text_hidden_size)
        self.register_buffer("videos", torch.zeros(size, width))
        self.register_buffer("texts", torch.zeros(size, width))
        self.register_buffer("labels", torch.full((size,), -1))  # -1: nothing there yet
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def is_for(self, batch: Batch) -> bool:
        return not batch.twins

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        own = embeddings_of(student)
        if self.slow is None:
            same = batch.labels.unsqueeze(1) == batch.labels
            targets = same / same.sum(1, keepdim=True)
            logits = own.video @ own.text.T / own.temperature
            videos = soft_cross_entropy(*with_turned(logits, targets, own, batch))
            return (videos + soft_cross_entropy(logits.T, targets)) / 2
        with torch.no_grad():
            slow = embeddings_of(outputs_of(self.slow, batch))
            labels = torch.cat([batch.labels, self.labels])
            texts, videos = torch.cat([slow.text, self.texts]), torch.cat([slow.video, self.videos])
            if self.training:
                self._pending.append((slow.video, slow.text, batch.labels))
        losses = []
        for query, keys, theirs in ((own.video, texts, slow.video), (own.text, videos, slow.text)):
            empty = labels < 0
            logits = (query @ keys.T / own.temperature).masked_fill(empty, -torch.inf)
            with torch.no_grad():
                found = (theirs @ keys.T / own.temperature).masked_fill(empty, -torch.inf).softmax(-1)
                same = (batch.labels.unsqueeze(1) == labels).float()
                share = self.settings.soft_targets
                targets = share * found + (1 - share) * same / same.sum(1, keepdim=True)
            if query is own.video:
                logits, targets = with_turned(logits, targets, own, batch)
            losses.append(soft_cross_entropy(logits, targets))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def after_step(self, accelerator: Any) -> None:
        """Move the slow copy after the model, and put what it found into the queue."""
        if self.slow is None:
            return
        for slow, fast in zip(self.slow.parameters(), self._model[0].parameters(), strict=True):
            slow.lerp_(fast.detach().to(slow.dtype), 1 - self.settings.momentum)
        pending, self._pending = self._pending, []
        for found in pending:
            videos, texts, labels = (accelerator.gather(one.contiguous()) for one in found)
            places = (self.place + torch.arange(len(labels), device=labels.device)) % max(len(self.labels), 1)
            if len(self.labels) >= len(labels):
                self.videos[places], self.texts[places] = videos.to(self.videos), texts.to(self.texts)
                self.labels[places] = labels
                self.place.copy_((self.place + len(labels)) % len(self.labels))


class Matching(Term):
    """VTM: cross-entropy, in nats a pair, of each pair and of two hard negatives, one of its video and one of its text.

    Negatives are drawn in proportion to the contrastive softmax, among examples of other labels (ALBEF, Li et al.,
    NeurIPS 2021, arXiv:2107.07651, section 3.2).
    """

    settings: settings_of.VideoTextMatching
    turns: Tensor  #: () steps on batches that it could have been for

    def __init__(self, settings: settings_of.VideoTextMatching, context: ObjectiveContext) -> None:
        super().__init__(settings)
        self.matches = context.model is None or hasattr(context.model, "match")
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))
        self._had_turn = False

    def is_for(self, batch: Batch) -> bool:
        if not self.matches or batch.twins:
            return False
        self._had_turn = self.training
        return not self.training or int(self.turns) % self.settings.every == 0

    def after_step(self, accelerator: Any) -> None:
        self.turns += self._had_turn  # steps on twins do not count: where kinds take turns, it might meet those alone
        self._had_turn = False

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        own = embeddings_of(student)
        assert own.match is not None
        with torch.no_grad():
            logits = own.video @ own.text.T / own.temperature
            same = batch.labels.unsqueeze(1) == batch.labels
            rows = (~same).any(1).nonzero().flatten()  # the others of a batch may all be of one label
            texts, videos = (
                torch.multinomial(one.masked_fill(same, -torch.inf)[rows].softmax(-1).clamp_min(1e-9) * ~same[rows], 1)
                for one in (logits, logits.T)
            )
        texts = texts.flatten()
        if own.turned is not None:  # a half of the wrong texts are the video's own one turned around, where it can be
            there = _says_something(batch.inputs["turned_attention_mask"])[rows]
            chosen = torch.multinomial(there.float() + 1e-9, 1)
            turned = len(own.video) + rows * there.shape[1] + chosen.flatten()
            texts = torch.where(there.any(1) & (torch.rand(len(rows), device=rows.device) < 0.5), turned, texts)
        whole = torch.arange(len(own.video), device=rows.device)
        pairs = torch.cat([whole, rows, videos.flatten()]), torch.cat([whole, texts, rows])
        labels = torch.zeros(len(pairs[0]), dtype=torch.int64, device=rows.device)
        labels[: len(whole)] = 1
        return F.cross_entropy(own.match(*pairs).float(), labels)


def _says_something(mask: Tensor) -> Tensor:
    """Which texts, of which the mask (..., L) is given, hold more than what every text begins and ends with."""
    return mask.sum(-1) > 2


class FrameContrast(Term):
    """ECL: InfoNCE both ways between frames and their captions, in nats; captions that say nothing do not count."""

    settings: settings_of.FrameContrast

    def is_for(self, batch: Batch) -> bool:
        mask = batch.inputs.get("frame_attention_mask")
        return not batch.twins and mask is not None and bool(_says_something(mask).any())

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        own = embeddings_of(student)
        assert own.captions is not None
        mask = batch.inputs["frame_attention_mask"].flatten(0, 1)
        counted = _says_something(mask)
        frames, captions = own.frames.flatten(0, 1)[counted], own.captions.flatten(0, 1)[counted]
        number = torch.arange(len(own.frames), device=mask.device).repeat_interleave(own.frames.shape[1])[counted]
        ids = (batch.inputs["frame_input_ids"].flatten(0, 1) * mask)[counted]
        with torch.no_grad():
            equal = (ids.unsqueeze(1) == ids).all(-1)
            near = (captions @ captions.T >= self.settings.alike) & (number.unsqueeze(1) == number)
            excluded = (equal | near) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        logits = (frames @ captions.T / self.settings.temperature).masked_fill(excluded, -torch.inf)
        own_caption = torch.arange(len(ids), device=ids.device)
        return (F.cross_entropy(logits, own_caption) + F.cross_entropy(logits.T, own_caption)) / 2


class EventOrder(Term):
    """ETL in TACT's form: InfoNCE both ways over pairs and their reversed twins, in nats.

    Row i and row i + n of 2n are twins. To the logits of a pair's own twin log alpha_same is added, to those of other
    pairs in the other order log alpha_cross; the reversed half's own loss counts beta times.
    """

    settings: settings_of.EventOrder

    def is_for(self, batch: Batch) -> bool:
        return batch.twins

    def forward(self, student: Outputs, teacher: TeacherOutputs | None, batch: Batch) -> Tensor:
        own = embeddings_of(student)
        count = len(own.video) // 2
        rows = torch.arange(2 * count, device=own.video.device)
        other = (rows.unsqueeze(1) < count) != (rows < count)
        twin = other & (rows.unsqueeze(1) % count == rows % count)
        factors = torch.ones(2 * count, 2 * count, device=rows.device)
        factors[other], factors[twin] = self.settings.alpha_cross, self.settings.alpha_same
        # other pairs of the very same label, such as one sentence said of two videos, are no negatives
        same = (batch.labels.unsqueeze(1) == batch.labels) & (rows.unsqueeze(1) != rows)
        logits = own.video @ own.text.T / self.settings.temperature + factors.log()
        logits = logits.masked_fill(same, -torch.inf)
        weights = torch.where(rows < count, 1.0, self.settings.beta)
        losses = [F.cross_entropy(one, rows, reduction="none") for one in (logits, logits.T)]
        return (torch.stack(losses).mean(0) * weights).sum() / weights.sum()

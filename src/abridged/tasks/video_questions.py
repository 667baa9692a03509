"""Answering questions about videos, by writing the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.modes import evaluating
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.video.clips import Clip, VideoData
from abridged.data.video.events import Answers
from abridged.report.data import SampleGroup
from abridged.tasks.video_text import VideoTask

_PICTURED = _SAMPLES = 4


class VideoQuestions(VideoTask):
    """Clips with questions in three parts; measured by the share of answers that are right, word for word."""

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 10, "learning_rate": 2e-5, "schedule": "cosine", "weight_decay": 0.05, "keep": "best",
    }  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, data: VideoData) -> None:
        if not any(clip.questions for clip in data.train):
            raise AbridgedError(f"'{data.name}' has no questions, and a {type(model).__name__} answers questions")
        super().__init__(model, tokenizer, data)
        self.begin = int(model.config.text_config.bos_token_id)

    def _examples(self, settings: TrainingSettings) -> Answers:
        return self._of(self.data.train, min(settings.context or self.limit, self.limit))

    def _of(self, clips: Sequence[Clip], context: int) -> Answers:
        texts = self.pictures.texts(clips, self.tokenizer, context, questions=True)
        return Answers(texts, self.begin, self.pictures.tokens)

    def facts(self) -> dict[str, Any]:
        return {
            "videos": len(self.data.train),
            "train_answers": sum(len(clip.questions) for clip in self.data.train),
            "frames": self.pictures.frames,
            "rows_dropped": self.data.dropped,
        }

    def measured(self, model: Any, clips: Sequence[Clip], deep: bool = True) -> Measured:
        wanted = [answer for clip in clips for _, answer in clip.questions]
        right = [_plain(a) == _plain(b) for a, b in zip(self.answers(model, clips), wanted, strict=True)]
        value = 100 * sum(right) / max(len(right), 1)
        return Measured([Measurement("accuracy", value, "answers", headline=True)], questions=len(wanted))

    def answers(self, model: Any, clips: Sequence[Clip], batch_size: int = 16) -> list[str]:
        """What a model writes to each question."""
        examples, found = self._of(clips, self.limit), []
        with torch.inference_mode(), evaluating(model) as device:
            for start in range(0, len(examples), batch_size):
                index = torch.arange(start, min(start + batch_size, len(examples)))
                given = examples.texts.batch(index).to(device).inputs
                found += model.answer(**given)
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]

    def picture(self) -> Batch:
        examples = self._of([clip for clip in self.data.test if clip.questions][:_PICTURED], self.limit)
        return examples.batch(torch.arange(min(_PICTURED, len(examples))))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = [clip for clip in self.data.test if clip.questions][:_SAMPLES]
        asked = [pair for clip in some for pair in clip.questions]
        told = {name: self.answers(model, some) for name, model in models.items()}
        return [
            SampleGroup.of(
                question, {"reference": answer, **{name: said[i] for name, said in told.items()}}, label="Question"
            )
            for i, (question, answer) in enumerate(asked[:_SAMPLES])
        ]


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())

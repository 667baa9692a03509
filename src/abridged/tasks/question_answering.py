"""Finding the answer to a question in a paragraph, as in SQuAD v1.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from abridged.core.measurement import Measured
from abridged.core.modes import evaluating
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.squad import Question, QuestionData, TokenQuestions, squad_scores
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task

LONGEST = 30  #: tokens of an answer
_PICTURED = 4
_SAMPLES = 4


class QuestionAnswering(Task):
    """Questions in three parts; measured by exact match and F1."""

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 2, "learning_rate": 5e-5, "batch_size": 16, "warmup": 0.1, "weight_decay": 0.01, "keep": "best",
        "context": 384, "evaluate_every": 500,
    }  # fmt: skip

    data: QuestionData

    def __init__(self, model: Any, tokenizer: Any, data: QuestionData) -> None:
        super().__init__(model, tokenizer, data)
        self.limit = min(int(tokenizer.model_max_length), self.limit)

    def _examples(self, settings: TrainingSettings) -> TokenQuestions:
        return self._of("train", settings.context_within(self.limit))

    def _of(self, split: str, context: int) -> TokenQuestions:
        questions, training = getattr(self.data, split), split == "train"
        return self._once((split, context), lambda: TokenQuestions.of(questions, self.tokenizer, context, training))

    def facts(self) -> dict[str, Any]:
        found = next(e for (split, _), e in self._encoded.items() if split == "train")
        return {
            "train_questions": len(self.data.train),
            "train_windows": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
        }

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        context = settings.context_within(self.limit)
        few = self.data.validation
        examples = self._of("validation", context)
        limit = max(1, round(settings.evaluate_tokens / examples.tokens_in_example))
        some = few[: int(examples.question[min(limit, len(examples)) - 1]) + 1]
        encoded = TokenQuestions.of(some, self.tokenizer, context, training=False)
        return lambda: squad_scores(find_answers(model, some, encoded), some)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        questions = getattr(self.data, split)
        answers = find_answers(model, questions, self._of(split, settings.context_within(self.limit)))
        return squad_scores(answers, questions).also(texts=len(questions))

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        questions, context = self.data.test[:limit], context or min(384, self.limit)
        encoded = TokenQuestions.of(questions, self.tokenizer, context, training=False)
        return squad_scores(find_answers(model, questions, encoded), questions).also(texts=len(questions))

    def picture(self) -> Batch:
        some = self.data.test[:_PICTURED]
        encoded = TokenQuestions.of(some, self.tokenizer, min(128, self.limit), training=False)
        return encoded.batch(torch.arange(min(_PICTURED, len(encoded))))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = self.data.test[:_SAMPLES]
        encoded = TokenQuestions.of(some, self.tokenizer, min(384, self.limit), training=False)
        found = {name: find_answers(model, some, encoded) for name, model in models.items()}
        return [
            SampleGroup.of(
                question.question,
                {"reference": question.answers[0], **{name: answers[i] for name, answers in found.items()}},
                label="Question",
            )
            for i, question in enumerate(some)
        ]


@torch.inference_mode()
def find_answers(model: Any, questions: Sequence[Question], windows: TokenQuestions, batch_size: int = 16) -> list[str]:
    """The likeliest span of each question's paragraph, of at most `LONGEST` tokens, over all its windows."""
    best = [(-np.inf, "")] * len(questions)
    order = np.argsort([len(ids) for ids in windows.ids], kind="stable")
    with evaluating(model) as device:
        for first in range(0, len(windows), batch_size):
            index = torch.from_numpy(order[first : first + batch_size].copy())
            found = model(**windows.batch(index).to(device).model_inputs)
            for row, i in enumerate(index.tolist()):
                places, size = windows.offsets[i], len(windows.ids[i])
                begins, ends = (x[row, :size].float().cpu().numpy() for x in (found.start_logits, found.end_logits))
                value, start, end = _best_span(begins, ends, places[:, 0] >= 0)
                number = int(windows.question[i])
                if value > best[number][0]:
                    text = questions[number].paragraph[places[start, 0] : places[end, 1]]
                    best[number] = (value, text)
    return [text for _, text in best]


def _best_span(start: np.ndarray, end: np.ndarray, allowed: np.ndarray) -> tuple[float, int, int]:
    """Value, first and last of the span whose start (n,) and end (n,) scores sum to most, within what is allowed."""
    sums = np.where(allowed, start, -np.inf)[:, None] + np.where(allowed, end, -np.inf)[None, :]
    span = np.arange(len(start))[None, :] - np.arange(len(start))[:, None]
    sums[(span < 0) | (span >= LONGEST)] = -np.inf
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(first), int(last)

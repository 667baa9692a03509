"""Finding the answer to a question in a paragraph, as in SQuAD v1.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from abridged.data.batch import Batch
from abridged.data.squad import Question, TokenQuestions, load_squad, squad_scores
from abridged.errors import AbridgedError
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task, refuse_augmentation, refuse_stride, refuse_texts
from abridged.training.settings import TrainingSettings

TRAIN, TEST = "train-v1.1.json", "dev-v1.1.json"
HELD_OUT = 0.02  #: of the training part, in whole paragraphs, to choose models by
LONGEST = 30  #: tokens of an answer
_PICTURED = 4
_SAMPLES = 4


class QuestionAnswering(Task):
    """Questions in three parts; measured by exact match and F1.

    Raises:
        AbridgedError: the folder lacks one of SQuAD's files, or they cannot be read.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 2, "learning_rate": 5e-5, "batch_size": 16, "warmup": 0.1, "weight_decay": 0.01, "keep": "best",
        "context": 384, "evaluate_every": 500,
    }  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, data: str | Path) -> None:
        folder = Path(data).expanduser()
        for name in (TRAIN, TEST):
            if not (folder / name).is_file():
                raise AbridgedError(f"the folder {data} has no {name}")
        self.name, self.notes, self.has_test = "squad", [], True
        questions = load_squad(folder / TRAIN)
        paragraphs = list(dict.fromkeys(q.paragraph for q in questions))
        held = set(paragraphs[-max(1, round(HELD_OUT * len(paragraphs))) :])
        self.parts = {
            "train": [q for q in questions if q.paragraph not in held],
            "validation": [q for q in questions if q.paragraph in held],
            "test": load_squad(folder / TEST),
        }
        self.tokenizer = tokenizer
        self.limit = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
        self._encoded: dict[tuple[str, int], TokenQuestions] = {}

    def examples(self, settings: TrainingSettings) -> TokenQuestions:
        refuse_augmentation(settings)
        refuse_texts(settings)
        return self._of("train", settings.context_within(self.limit))

    def _of(self, split: str, context: int) -> TokenQuestions:
        if (split, context) not in self._encoded:
            training = split == "train"
            self._encoded[split, context] = TokenQuestions.of(self.parts[split], self.tokenizer, context, training)
        return self._encoded[split, context]

    def facts(self) -> dict[str, Any]:
        found = next(e for (split, _), e in self._encoded.items() if split == "train")
        return {
            "train_questions": len(self.parts["train"]),
            "train_windows": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
        }

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], dict[str, float]]:
        context = settings.context_within(self.limit)
        few = self.parts["validation"]
        examples = self._of("validation", context)
        limit = max(1, round(settings.evaluate_tokens / examples.tokens_in_example))
        some = few[: int(examples.question[min(limit, len(examples)) - 1]) + 1]
        encoded = TokenQuestions.of(some, self.tokenizer, context, training=False)
        return lambda: squad_scores(find_answers(model, some, encoded), some)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> dict[str, Any]:
        questions = self.parts[split]
        answers = find_answers(model, questions, self._of(split, settings.context_within(self.limit)))
        return {**squad_scores(answers, questions), "texts": len(questions)}

    def evaluate(self, model: Any, context: int | None, stride: int | None) -> dict[str, Any]:
        refuse_stride(stride)
        return self.measure(model, "test", TrainingSettings(context=context or min(384, self.limit)))

    def picture(self) -> Batch:
        some = self.parts["test"][:_PICTURED]
        encoded = TokenQuestions.of(some, self.tokenizer, min(128, self.limit), training=False)
        return encoded.batch(torch.arange(min(_PICTURED, len(encoded))))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = self.parts["test"][:_SAMPLES]
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
    device = next(iter(model.parameters())).device
    best = [(-np.inf, "")] * len(questions)
    was_training = model.training
    model.eval()
    order = np.argsort([len(ids) for ids in windows.ids], kind="stable")
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
    model.train(was_training)
    return [text for _, text in best]


def _best_span(start: np.ndarray, end: np.ndarray, allowed: np.ndarray) -> tuple[float, int, int]:
    """Value, first and last of the span whose start (n,) and end (n,) scores sum to most, within what is allowed."""
    sums = np.where(allowed, start, -np.inf)[:, None] + np.where(allowed, end, -np.inf)[None, :]
    span = np.arange(len(start))[None, :] - np.arange(len(start))[:, None]
    sums[(span < 0) | (span >= LONGEST)] = -np.inf
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(first), int(last)

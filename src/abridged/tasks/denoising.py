"""Restoring a text from one with noise in it: what BART is pre-trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from abridged.data.batch import Batch
from abridged.data.blocks import tokenize
from abridged.data.denoising import Denoising, Vocabulary
from abridged.data.pairs import Specials
from abridged.data.text import count_words, load_text
from abridged.evaluation.references import reference_perplexity
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task, refuse_augmentation, refuse_stride, refuse_texts
from abridged.training.settings import TrainingSettings

#: Windows that the final measurement reads at most.
_WINDOWS = 512


class TextDenoising(Task):
    """A text in three parts, cut into windows; measured by the perplexity of what it was, given the noisy one.

    Raises:
        AbridgedError: see `load_text`, `Specials.of` and `Vocabulary.of`.
    """

    def __init__(self, model: Any, tokenizer: Any, data: str | Path) -> None:
        self.text = load_text(data)
        self.name, self.notes = self.text.name, []
        self.has_test = self.text.test != self.text.validation
        self.tokenizer = tokenizer
        self.specials, self.vocabulary = Specials.of(tokenizer, model.config), Vocabulary.of(tokenizer)
        self.limit = int(model.config.max_position_embeddings)
        self._examples: dict[tuple[str, int], Denoising] = {}

    def examples(self, settings: TrainingSettings) -> Denoising:
        refuse_augmentation(settings)
        refuse_texts(settings)
        return self._of("train", settings)

    def facts(self) -> dict[str, Any]:
        return {"train_tokens": len(next(e.text for (split, _), e in self._examples.items() if split == "train"))}

    def _of(self, split: str, settings: TrainingSettings) -> Denoising:
        context = settings.context_within(self.limit)
        if (split, context) not in self._examples:
            tokens = tokenize(self.tokenizer, getattr(self.text, split))
            self._examples[split, context] = Denoising(tokens, context, self.specials, self.vocabulary)
        return self._examples[split, context]

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], dict[str, float]]:
        limit = max(1, settings.evaluate_tokens // settings.context_within(self.limit))

        def validate() -> dict[str, float]:
            measured = self._measure(model, "validation", settings, limit)
            return {key: measured[key] for key in ("perplexity", "word_perplexity")}

        return validate

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> dict[str, Any]:
        return self._measure(model, split, settings, _WINDOWS)

    def evaluate(self, model: Any, context: int | None, stride: int | None) -> dict[str, Any]:
        refuse_stride(stride)
        return self.measure(model, "test", TrainingSettings(context=context))

    def _measure(self, model: Any, split: Split, settings: TrainingSettings, limit: int) -> dict[str, Any]:
        words = count_words(getattr(self.text, split))
        examples = self._of(split, settings)
        return reference_perplexity(model, examples, words, len(self.specials.before), limit)

    def picture(self) -> Batch:
        context = next(context for split, context in self._examples if split == "test")
        return self._examples["test", context].batch(torch.zeros(1, dtype=torch.int64))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        return []

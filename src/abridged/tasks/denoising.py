"""Restoring a text from one with noise in it: what BART is pre-trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from abridged.core.measurement import Measured
from abridged.core.settings import TrainingSettings, settings_to_read
from abridged.data.batch import Batch
from abridged.data.blocks import tokenize
from abridged.data.denoising import Denoising, Vocabulary
from abridged.data.pairs import Specials
from abridged.data.text import TextData, count_words
from abridged.evaluation.perplexity import reference_perplexity
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task

#: Windows that the final measurement reads at most.
_WINDOWS = 512


class TextDenoising(Task):
    """A text in three parts, cut into windows; measured by the perplexity of what it was, given the noisy one.

    Raises:
        AbridgedError: see `Specials.of` and `Vocabulary.of`.
    """

    def __init__(self, model: Any, tokenizer: Any, text: TextData) -> None:
        super().__init__(model, tokenizer, text)
        self.specials, self.vocabulary = Specials.of(tokenizer, model.config), Vocabulary.of(tokenizer)

    def _examples(self, settings: TrainingSettings) -> Denoising:
        return self._of("train", settings)

    def facts(self) -> dict[str, Any]:
        return {"train_tokens": len(next(e.text for (split, _), e in self._encoded.items() if split == "train"))}

    def _of(self, split: str, settings: TrainingSettings) -> Denoising:
        context = settings.context_within(self.limit)

        def make() -> Denoising:
            tokens = tokenize(self.tokenizer, getattr(self.data, split))
            return Denoising(tokens, context, self.specials, self.vocabulary)

        return self._once((split, context), make)

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        limit = max(1, settings.evaluate_tokens // settings.context_within(self.limit))
        return lambda: Measured(self._measure(model, "validation", settings, limit).measurements)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        return self._measure(model, split, settings, _WINDOWS)

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        settings = settings_to_read(context)
        windows = _WINDOWS if limit is None else max(1, limit // settings.context_within(self.limit))
        return self._measure(model, "test", settings, windows)

    def _measure(self, model: Any, split: Split, settings: TrainingSettings, limit: int) -> Measured:
        words = count_words(getattr(self.data, split))
        examples = self._of(split, settings)
        return reference_perplexity(model, examples, words, len(self.specials.before), limit)

    def picture(self) -> Batch:
        found = next(e for (split, _), e in self._encoded.items() if split == "test")
        return found.batch(torch.zeros(1, dtype=torch.int64))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        return []

"""Going on with a text: what GPT-2 and LLaMA are trained for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abridged.data.batch import Batch
from abridged.data.blocks import Blocks, tokenize
from abridged.data.text import count_words, load_text
from abridged.errors import AbridgedError
from abridged.evaluation.generation import generate
from abridged.evaluation.perplexity import negative_log_likelihood, perplexity
from abridged.report.collect import TOKENS
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task, refuse_augmentation
from abridged.training.settings import TrainingSettings

PROMPT = " The river"


class LanguageModeling(Task):
    """A text in three parts, cut into blocks; measured by perplexity.

    Raises:
        AbridgedError: see `load_text`.
    """

    def __init__(self, model: Any, tokenizer: Any, data: str | Path) -> None:
        self.text = load_text(data)
        self.name, self.notes = self.text.name, []
        self.has_test = self.text.test != self.text.validation
        self.tokenizer = tokenizer
        self.limit = int(model.config.max_position_embeddings)
        self._tokens: dict[str | None, np.ndarray] = {}

    def tokens(self, texts: str | None = None) -> np.ndarray:
        """The training part, or that of a stage's own texts, tokenised once."""
        if texts not in self._tokens:
            text = self.text if texts is None else load_text(texts)
            self._tokens[texts] = tokenize(self.tokenizer, text.train)
        return self._tokens[texts]

    def examples(self, settings: TrainingSettings) -> Blocks:
        refuse_augmentation(settings)
        return Blocks(self.tokens(settings.texts), settings.context_within(self.limit))

    def facts(self) -> dict[str, Any]:
        return {"train_tokens": len(self.tokens())}

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], dict[str, float]]:
        """Perplexity on the first `evaluate_tokens` tokens of the validation text.

        Raises:
            AbridgedError: that text has nothing to predict.
        """
        context = settings.context or self.limit
        tokens = tokenize(self.tokenizer, self.text.validation)[: settings.evaluate_tokens + 1]
        if len(tokens) < 2:
            raise AbridgedError(
                f"the validation part of the text '{self.name}' has fewer than two tokens: give more text"
            )
        words = count_words(self.tokenizer.decode(tokens))

        def validate() -> dict[str, float]:
            nll, counted = negative_log_likelihood(model, tokens, context, context)
            return {"perplexity": math.exp(min(nll / counted, 700)), "word_perplexity": math.exp(min(nll / words, 700))}

        return validate

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> dict[str, Any]:
        text = self.text.validation if split == "validation" else self.text.test
        return perplexity(model, self.tokenizer, text, settings.context)

    def evaluate(self, model: Any, context: int | None, stride: int | None) -> dict[str, Any]:
        return perplexity(model, self.tokenizer, self.text.to_evaluate, context, stride)

    def picture(self) -> Batch:
        ids = torch.from_numpy(tokenize(self.tokenizer, self.text.test[:20_000]).astype(np.int64))
        ids = ids[: min(TOKENS, self.limit)].unsqueeze(0)
        return Batch(ids, ids, torch.zeros(1, dtype=torch.int64))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.8, "top_k": 40, "seed": 1}
        written = {
            name: "".join(generate(models[name], self.tokenizer, PROMPT, **settings)) for name in ("teacher", "student")
        }
        return [SampleGroup.of(PROMPT.strip(), written)]

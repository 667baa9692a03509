"""Going on with a text: what GPT-2 and LLaMA are trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured
from abridged.core.settings import TrainingSettings
from abridged.data.batch import Batch
from abridged.data.blocks import Blocks, tokenize
from abridged.data.text import TextData, count_words, load_text
from abridged.evaluation.generation import generate
from abridged.evaluation.perplexity import negative_log_likelihood, perplexities, perplexity
from abridged.report.collect import TOKENS
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task

PROMPT = " The river"


class LanguageModeling(Task):
    """A text in three parts, cut into blocks; measured by perplexity."""

    takes = frozenset({"texts", "stride"})
    data: TextData

    def __init__(self, model: Any, tokenizer: Any, text: TextData) -> None:
        super().__init__(model, tokenizer, text)

    def tokens(self, texts: str | None = None) -> np.ndarray:
        """The training part, or that of a stage's own texts, tokenised once."""
        return self._once(
            texts, lambda: tokenize(self.tokenizer, (self.data if texts is None else load_text(texts)).train)
        )

    def _examples(self, settings: TrainingSettings) -> Blocks:
        return Blocks(self.tokens(settings.texts), settings.context_within(self.limit))

    def facts(self) -> dict[str, Any]:
        return {"train_tokens": len(self.tokens())}

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        """Perplexity on the first `evaluate_tokens` tokens of the validation text.

        Raises:
            AbridgedError: that text has nothing to predict.
        """
        context = settings.context_within(self.limit)
        tokens = tokenize(self.tokenizer, self.data.validation)[: settings.evaluate_tokens + 1]
        if len(tokens) < 2:
            raise AbridgedError(
                f"the validation part of the text '{self.name}' has fewer than two tokens: give more text"
            )
        words = count_words(self.tokenizer.decode(tokens))

        def validate() -> Measured:
            nll, counted = negative_log_likelihood(model, tokens, context, context)
            return Measured(perplexities(nll, counted, words))

        return validate

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        text = self.data.validation if split == "validation" else self.data.test
        return perplexity(model, self.tokenizer, text, settings.context)

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        return perplexity(model, self.tokenizer, self.data.to_evaluate, context, stride, limit=limit)

    def picture(self) -> Batch:
        ids = torch.from_numpy(tokenize(self.tokenizer, self.data.test[:20_000]).astype(np.int64))
        ids = ids[: min(TOKENS, self.limit)].unsqueeze(0)
        return Batch.of(ids, ids, torch.zeros(1, dtype=torch.int64))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        settings: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.8, "top_k": 40, "seed": 1}
        written = {
            name: "".join(generate(models[name], self.tokenizer, PROMPT, **settings))
            for name in ("teacher", "student")
            if name in models
        }
        return [SampleGroup.of(PROMPT.strip(), written)]

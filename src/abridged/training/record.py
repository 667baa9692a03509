"""What a run notes about itself, and how it is validated while it trains."""

import importlib.metadata
import math
import platform
from collections.abc import Callable
from typing import Any

from abridged.data.blocks import tokenize
from abridged.data.text import TextData, count_words
from abridged.errors import AbridgedError
from abridged.evaluation.perplexity import negative_log_likelihood
from abridged.training.hardware import describe
from abridged.training.settings import TrainingSettings

_PACKAGES = ("abridged", "torch", "transformers", "accelerate", "safetensors")


def environment() -> dict[str, Any]:
    """Versions and hardware, for abridged.json."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "hardware": describe()}


def quick_validation(
    model: Any, tokenizer: Any, text: TextData, settings: TrainingSettings
) -> Callable[[], dict[str, float]]:
    """A function that measures perplexity on the first `evaluate_tokens` tokens of the validation text.

    Raises:
        AbridgedError: that text has nothing to predict.
    """
    context = settings.context or int(model.config.max_position_embeddings)
    tokens = tokenize(tokenizer, text.validation)[: settings.evaluate_tokens + 1]
    if len(tokens) < 2:
        raise AbridgedError(f"the validation part of the text '{text.name}' has fewer than two tokens: give more text")
    words = count_words(tokenizer.decode(tokens))

    def validate() -> dict[str, float]:
        nll, counted = negative_log_likelihood(model, tokens, context, context)
        return {"perplexity": math.exp(min(nll / counted, 700)), "word_perplexity": math.exp(min(nll / words, 700))}

    return validate

"""Perplexity of a causal language model, per token and per word."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from abridged.data.blocks import tokenize
from abridged.data.text import count_words
from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def negative_log_likelihood(
    model: "PreTrainedModel", tokens: np.ndarray, context: int, stride: int, batch_size: int = 4
) -> tuple[float, int]:
    """Sum of -log p over every token but the first, and how many were counted.

    Windows of `context` tokens begin every `stride` tokens; a window scores only what the one before did not reach,
    so that each token is counted once, with at least `context - stride` tokens before it (but at the very start).
    """
    device = next(iter(model.parameters())).device
    starts = range(0, max(1, len(tokens) - 1 - (context - stride)), stride)
    total, counted = 0.0, 0
    for first in range(0, len(starts), batch_size):
        windows, labels = [], []
        for start in starts[first : first + batch_size]:
            window = tokens[start : start + context + 1].astype(np.int64)
            target = window[1:].copy()
            if start > 0:
                target[: context - stride] = -100
            pad = context + 1 - len(window)
            windows.append(np.pad(window[:-1], (0, pad)))
            labels.append(np.pad(target, (0, pad), constant_values=-100))
        target_ids = torch.from_numpy(np.stack(labels)).to(device)
        logits = model(input_ids=torch.from_numpy(np.stack(windows)).to(device), use_cache=False).logits.float()
        total += float(F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), ignore_index=-100, reduction="sum"))
        counted += int((target_ids != -100).sum())
    return total, counted


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 4,
) -> dict[str, Any]:
    """Perplexity of `model` on `text`.

    Args:
        context: tokens in a window; all that the positions allow when None.
        stride: tokens between window starts; the context when None (windows do not overlap).

    Returns:
        `perplexity` per token, `word_perplexity` per word (total NLL over `words`), `bits_per_byte`, `tokens` (those
        predicted), `words`, `context` and `stride`.

    Raises:
        AbridgedError: the text has fewer than two tokens, the windows do not fit the model, or the tokenizer does not.
    """
    limit = int(getattr(model.config, "max_position_embeddings", 0) or context or 1024)
    context = limit if context is None else context
    stride = context if stride is None else stride
    if not 2 <= context <= limit or not 1 <= stride <= context:
        raise AbridgedError(
            f"context {context} and stride {stride} do not fit: need 1 ≤ stride ≤ context and 2 ≤ context ≤ {limit}"
        )
    tokens = tokenize(tokenizer, text)
    if len(tokens) < 2:
        raise AbridgedError("the text is too short to measure perplexity on: it has fewer than two tokens")
    if int(tokens.max()) >= model.config.vocab_size:
        raise AbridgedError(
            f"the tokenizer does not fit the model: it made token {int(tokens.max())}, of a vocabulary of "
            f"{model.config.vocab_size}"
        )
    was_training = model.training
    model.eval()
    nll, counted = negative_log_likelihood(model, tokens, context, stride, batch_size)
    model.train(was_training)
    words = count_words(text)
    return {
        "perplexity": exp(nll / counted),
        "word_perplexity": exp(nll / max(1, words)),
        "bits_per_byte": nll / math.log(2) / max(1, len(text.encode())),
        "tokens": counted,
        "words": words,
        "context": context,
        "stride": stride,
    }


def exp(value: float) -> float:
    """e to the `value`, infinite where that is beyond what a float holds."""
    return math.exp(value) if value < 700 else math.inf

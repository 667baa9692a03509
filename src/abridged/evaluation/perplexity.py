"""Perplexity, per token and per word: of a causal language model on a text, and of what an encoder-decoder should have
written, given all of it that comes before (teacher forcing).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.modes import evaluating
from abridged.core.progress import counter
from abridged.core.settings import DEFAULT_CONTEXT
from abridged.data.blocks import tokenize
from abridged.data.examples import Examples
from abridged.data.text import count_words
from abridged.families.kinds import context_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Logits that are held at once: 256 MB.
_LOGITS = 2**26


@torch.inference_mode()
def negative_log_likelihood(
    model: PreTrainedModel, tokens: np.ndarray, context: int, stride: int, batch_size: int | None = None
) -> tuple[float, int]:
    """Sum of -log p over every token but the first, and how many were counted. Raises AbridgedError for no number.

    Windows of `context` tokens begin every `stride` tokens; a window scores only what the one before did not reach,
    so that each token is counted once, with at least `context - stride` tokens before it (but at the very start).
    `batch_size` windows are read at once: four, or as few as keep the logits within `_LOGITS` numbers.
    """
    if batch_size is None:
        batch_size = max(1, min(4, _LOGITS // (context * model.config.get_text_config().vocab_size)))
    device = next(iter(model.parameters())).device
    starts = range(0, max(1, len(tokens) - 1 - (context - stride)), stride)
    total, counted = 0.0, 0
    with counter("perplexity") as show:
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
            ids = torch.from_numpy(np.stack(windows)).to(device)
            logits = model(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
            torch.log_softmax(logits, -1, out=logits)  # in place: with a large vocabulary nothing is larger
            total += float(F.nll_loss(logits, target_ids.flatten(), ignore_index=-100, reduction="sum"))
            counted += int((target_ids != -100).sum())
            if not math.isfinite(total):
                raise AbridgedError("what the model answers are not numbers (NaN or infinity)")
            show(min(first + batch_size, len(starts)), len(starts))
    return total, counted


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
) -> Measured:
    """Perplexity of `model` on `text`.

    Args:
        context: tokens in a window; all that the positions allow when None, at most `DEFAULT_CONTEXT`.
        stride: tokens between window starts; the context when None (windows do not overlap).
        limit: tokens to predict at most, the first ones.

    Returns:
        `perplexity` per token, `word_perplexity` per word (total NLL over `words`), `bits_per_byte`, `tokens` (those
        predicted), `words`, `context` and `stride`.

    Raises:
        AbridgedError: the text has fewer than two tokens, the windows do not fit the model, or the tokenizer does not.
    """
    most = context_of(model.config)
    context = min(most, DEFAULT_CONTEXT) if context is None else context
    stride = context if stride is None else stride
    if not 2 <= context <= most or not 1 <= stride <= context:
        raise AbridgedError(
            f"context {context} and stride {stride} do not fit: need 1 ≤ stride ≤ context and 2 ≤ context ≤ {most}"
        )
    tokens = tokenize(tokenizer, text)
    if len(tokens) < 2:
        raise AbridgedError("the text is too short to measure perplexity on: it has fewer than two tokens")
    if limit is not None and limit + 1 < len(tokens):
        tokens = tokens[: limit + 1]
        text = tokenizer.decode(tokens)
    if int(tokens.max()) >= model.config.vocab_size:
        raise AbridgedError(
            f"the tokenizer does not fit the model: it made token {int(tokens.max())}, of a vocabulary of "
            f"{model.config.vocab_size}"
        )
    with evaluating(model):
        nll, counted = negative_log_likelihood(model, tokens, context, stride, batch_size)
    words = count_words(text)
    size = nll / math.log(2) / max(1, len(text.encode()))
    bits = Measurement("bits_per_byte", size, unit="bits", better="lower")
    return Measured(
        [*perplexities(nll, counted, words), bits], tokens=counted, words=words, context=context, stride=stride
    )


def perplexities(nll: float, tokens: int, words: int, title: str = "perplexity") -> list[Measurement]:
    """What a summed negative log-likelihood is per token and per word, as perplexities."""
    kind: Any = {"title": title, "better": "lower", "headline": True, "logarithmic": True}
    per_token, per_word = exp(nll / tokens), exp(nll / max(1, words))
    return [
        Measurement("perplexity", per_token, unit="per token", **kind),
        Measurement("word_perplexity", per_word, unit="per word", **kind),
    ]


def exp(value: float) -> float:
    """e to the `value`, infinite where that is beyond what a float holds."""
    return math.exp(value) if value < 700 else math.inf


_SEED = 0  #: of the noise in examples that have some: every model is measured on the same


@torch.inference_mode()
def reference_perplexity(
    model: PreTrainedModel, examples: Examples, words: int, skip: int = 1, limit: int | None = None
) -> Measured:
    """Perplexity of `model` on the targets of `examples`.

    Args:
        words: whitespace-separated words of all targets, and one for the end of each.
        skip: tokens at the beginning of each target that do not count (its begin token, which is always the same).
        limit: examples to read, the first ones; all when None.

    Returns:
        `perplexity` per token, `word_perplexity` per word, `tokens` (those predicted), `words`, `examples`.
    """
    count = len(examples) if limit is None else min(limit, len(examples))
    total, counted = 0.0, 0
    with torch.random.fork_rng(devices=[]), counter("perplexity") as show, evaluating(model) as device:
        torch.manual_seed(_SEED)
        for index in torch.arange(count).split(16):
            batch = examples.batch(index).to(device)
            labels = batch.labels[:, skip:]
            logits = model(**batch.model_inputs, use_cache=False).logits[:, skip:].float()
            total += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))
            counted += int((labels != -100).sum())
            show(int(index[-1]) + 1, count)
    words = round(words * count / len(examples))
    return Measured(perplexities(total, counted, words), tokens=counted, words=words, examples=count)

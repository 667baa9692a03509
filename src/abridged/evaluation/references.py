"""Perplexity of what an encoder-decoder should have written, given all of it that comes before (teacher forcing)."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from abridged.data.examples import Examples
from abridged.evaluation.perplexity import exp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SEED = 0  #: of the noise in examples that have some: every model is measured on the same


@torch.inference_mode()
def reference_perplexity(
    model: "PreTrainedModel", examples: Examples, words: int, skip: int = 1, limit: int | None = None
) -> dict[str, Any]:
    """Perplexity of `model` on the targets of `examples`.

    Args:
        words: whitespace-separated words of all targets, and one for the end of each.
        skip: tokens at the beginning of each target that do not count (its begin token, which is always the same).
        limit: examples to read, the first ones; all when None.

    Returns:
        `perplexity` per token, `word_perplexity` per word, `tokens` (those predicted), `words`, `examples`.
    """
    device = next(iter(model.parameters())).device
    count = len(examples) if limit is None else min(limit, len(examples))
    was_training = model.training
    model.eval()
    total, counted = 0.0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        for index in torch.arange(count).split(16):
            batch = examples.batch(index).to(device)
            labels = batch.labels[:, skip:]
            logits = model(**batch.model_inputs, use_cache=False).logits[:, skip:].float()
            total += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))
            counted += int((labels != -100).sum())
    model.train(was_training)
    words = round(words * count / len(examples))
    return {
        "perplexity": exp(total / counted),
        "word_perplexity": exp(total / max(1, words)),
        "tokens": counted,
        "words": words,
        "examples": count,
    }

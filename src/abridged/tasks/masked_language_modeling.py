"""Filling masks in a text: what BERT is pre-trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured
from abridged.core.modes import evaluating
from abridged.core.settings import TrainingSettings, settings_to_read
from abridged.core.text import refuse_half_characters
from abridged.data.batch import Batch
from abridged.data.masking import MaskedTexts
from abridged.data.text import TextData, count_words, load_text, sentences
from abridged.evaluation.pseudo_perplexity import MASKED, pseudo_perplexity
from abridged.families.kinds import context_of, fills_masks
from abridged.families.logits import run_head_on
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task

#: What people write for a mask, whatever the model's own is.
_WRITTEN = ("[MASK]", "<mask>")
_SAMPLES, _GUESSES = 6, 3


class MaskedLanguageModeling(Task):
    """A text in three parts, cut into windows; measured by pseudo-perplexity."""

    #: BERT learned nine tenths of its steps on windows of 128 tokens (arXiv:1810.04805, appendix A.2).
    context: ClassVar[int | None] = 128
    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 3, "learning_rate": 1e-4, "batch_size": 32, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01,
        "keep": "best",
    }  # fmt: skip

    takes = frozenset({"texts"})
    data: TextData

    def __init__(self, model: Any, tokenizer: Any, data: TextData) -> None:
        super().__init__(model, tokenizer, data)
        self.limit = min(int(tokenizer.model_max_length), self.limit)

    def _examples(self, settings: TrainingSettings) -> MaskedTexts:
        if settings.texts is None:
            return self._of("train", settings)
        context, texts = self._context(settings), settings.texts
        return self._once((texts, context), lambda: MaskedTexts.of(load_text(texts).train, self.tokenizer, context))

    def _context(self, settings: TrainingSettings) -> int:
        most = settings.context_within(self.limit)
        return most if settings.context is not None else min(most, self.context or most)

    def _of(self, part: str, settings: TrainingSettings) -> MaskedTexts:
        context, text = self._context(settings), getattr(self.data, part)
        return self._once((part, context), lambda: MaskedTexts.of(text, self.tokenizer, context))

    def facts(self) -> dict[str, Any]:
        found = next((e for (part, _), e in self._encoded.items() if part == "train"), None)
        found = found or self._of("train", TrainingSettings())
        return {"masked": True, "train_tokens": int(sum(own.sum() for own in found.own))}

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        windows, words = self._of("validation", settings), count_words(self.data.validation)
        limit = max(1, settings.evaluate_tokens // windows.context)
        return lambda: Measured(pseudo_perplexity(model, windows, words, limit).measurements)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        return pseudo_perplexity(model, self._of(split, settings), count_words(getattr(self.data, split)))

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        windows = self._of("to_evaluate", settings_to_read(context))
        return pseudo_perplexity(model, windows, count_words(self.data.to_evaluate), limit or MASKED)

    def picture(self) -> Batch:
        windows = MaskedTexts.of(self.data.test[:20_000], self.tokenizer, self._context(TrainingSettings()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return windows.batch(torch.zeros(1, dtype=torch.int64))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        """What each model has for the longest word of some sentences."""
        mask, groups = self.tokenizer.mask_token, []
        for sentence in sentences(self.data.test[:20_000])[:_SAMPLES]:
            words = sentence.split()
            place = max(range(len(words)), key=lambda i: len(words[i]) if words[i].isalpha() else 0)
            hidden = " ".join([*words[:place], mask, *words[place + 1 :]])
            found = {name: fill_masks(model, self.tokenizer, [hidden], _GUESSES)[0] for name, model in models.items()}
            said = {
                name: ", ".join(f"{guess['word']} ({100 * guess['probability']:.0f} %)" for guess in masks[0])
                for name, masks in found.items()
                if masks  # else the mask was cut off
            }
            groups.append(SampleGroup.of(hidden, {"reference": words[place], **said}, label="Text"))
        return groups


@torch.inference_mode()
def fill_masks(
    model: Any, tokenizer: Any, texts: Sequence[str], most: int = 5, batch_size: int = 32
) -> list[list[list[dict[str, Any]]]]:
    """The likeliest tokens for each mask in texts.

    Args:
        texts: with [MASK] or <mask>, whatever the model's own is called; what is beyond its positions is cut off.
        most: tokens for each.

    Returns:
        Of each text, of each mask in it that was not cut off: `word` and `probability`, the likeliest first.

    Raises:
        AbridgedError: the model does not fill masks, or a text has none.
    """
    if not fills_masks(model):
        raise AbridgedError(f"a {type(model).__name__} does not fill masks")
    if isinstance(texts, str):
        raise AbridgedError("fill_masks takes a list of texts")
    refuse_half_characters(*texts)
    own = tokenizer.mask_token
    if own is None:
        raise AbridgedError("a model that fills masks needs a tokenizer with a mask token")
    given = []
    for text in texts:
        for written in _WRITTEN:
            text = text.replace(written, own)
        if own not in text:
            raise AbridgedError(f"the text '{text[:60]}' has no [MASK] to fill")
        given.append(text)
    limit = min(int(tokenizer.model_max_length), context_of(model.config))
    found: list[list[list[dict[str, Any]]]] = []
    with evaluating(model) as device:
        for start in range(0, len(given), batch_size):
            read = tokenizer(
                given[start : start + batch_size],
                truncation=True, max_length=limit, padding=True, return_tensors="pt", verbose=False,
            ).to(device)  # fmt: skip
            inputs = {name: read[name] for name in tokenizer.model_input_names if name in read}
            chosen = read["input_ids"] == tokenizer.mask_token_id
            chances = run_head_on(model, inputs, chosen)[0].float().softmax(-1)
            best = chances.topk(min(most, chances.shape[-1]), -1)
            guesses = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found += [[_words(tokenizer, *next(guesses)) for _ in range(count)] for count in chosen.sum(1).tolist()]
    return found


def _words(tokenizer: Any, ids: Sequence[int], chances: Sequence[float]) -> list[dict[str, Any]]:
    words = tokenizer.batch_decode([[i] for i in ids])
    return [{"word": word.strip(), "probability": chance} for word, chance in zip(words, chances, strict=True)]

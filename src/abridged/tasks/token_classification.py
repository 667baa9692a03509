"""Giving each word of a text a tag, such as that of a person's name: what BERT is fine-tuned for on CoNLL-2003."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured
from abridged.core.modes import evaluating
from abridged.core.settings import TrainingSettings, settings_to_read
from abridged.core.text import refuse_half_characters
from abridged.data.batch import Batch
from abridged.data.rows import listed
from abridged.data.tagged import Tagged, TaggedData, TokenTags
from abridged.evaluation.entities import NO_TAG, entities, entity_scores, marks_entities
from abridged.families.kinds import LabelSet, context_of, labels_tokens
from abridged.families.logits import run_head_on
from abridged.report.data import SampleGroup
from abridged.tasks.base import LABELLING, Split, Task

_PICTURED = 8
#: Texts of the test part that are looked through for what the student reads worst, and how many of these are shown.
_LOOKED_THROUGH, _SAMPLES = 400, 6


class TokenClassification(Task):
    """Texts with tags in three parts; measured by the F1 of the entities that the tags mark, or by how many are right.

    Raises:
        AbridgedError: the data's tags are not the model's.
    """

    defaults: ClassVar[dict[str, Any]] = LABELLING

    data: TaggedData

    def __init__(self, model: Any, tokenizer: Any, data: TaggedData) -> None:
        super().__init__(model, tokenizer, data)
        self.ids = LabelSet(data.tags, tokens=True).ids(model.config)
        strange = [tag for tag in data.tags if tag not in self.ids]
        if strange:
            raise AbridgedError(
                f"'{data.name}' has the tag '{strange[0]}', and the model's tags are {listed(list(self.ids))}: "
                "fine-tune a model for these, or rename them, in the data or in id2label and label2id of the model's "
                "config.json"
            )
        self.names = {i: tag for tag, i in self.ids.items()}
        self.marked = marks_entities(data.tags)
        self.limit = min(int(tokenizer.model_max_length), self.limit)

    def _examples(self, settings: TrainingSettings) -> TokenTags:
        found = self._of("train", settings.context_within(self.limit))
        if found.cut:
            self._note(f"{found.cut:,} of {len(found):,} texts are longer than the context and lose their ends")
        return found

    def _of(self, part: str, context: int) -> TokenTags:
        texts = getattr(self.data, part)
        return self._once((part, context), lambda: TokenTags.of(texts, self.tokenizer, self.ids, context))

    def facts(self) -> dict[str, Any]:
        found = next((e for (part, _), e in self._encoded.items() if part == "train"), None)
        found = found or self._of("train", self.limit)
        return {
            "tags": list(self.data.tags),
            "train_texts": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
            "texts_cut": found.cut,
            "rows_dropped": self.data.dropped,
        }

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        examples = self._of("validation", settings.context_within(self.limit))
        count = max(1, round(settings.evaluate_tokens / examples.tokens_in_example))
        return lambda: Measured(self._measure(model, examples, self.data.validation[:count]).measurements)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        texts = getattr(self.data, split)
        return self._measure(model, self._of(split, settings.context_within(self.limit)), texts)

    def _measure(self, model: Any, examples: TokenTags, texts: Sequence[Tagged]) -> Measured:
        """Of the first `examples`, which are `texts`; words that were cut off count as words without a tag."""
        found = entity_scores(self._tags(model, examples, len(texts)), [one.tags for one in texts], self.marked)
        return found.also(texts=len(texts))

    def _tags(self, model: Any, examples: TokenTags, count: int) -> list[list[str]]:
        logits = word_logits(model, examples, count)
        return [[NO_TAG if np.isnan(row[0]) else self.names[int(row.argmax())] for row in rows] for rows in logits]

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        examples = self._of("to_evaluate", settings_to_read(context).context_within(self.limit))
        found = self._measure(model, examples, self.data.to_evaluate[:limit])
        return found.also(texts_cut=examples.cut) if examples.cut else found

    def picture(self) -> Batch:
        some = self.data.test[:_PICTURED]
        return TokenTags.of(some, self.tokenizer, self.ids, self.limit).batch(torch.arange(len(some)))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        """Those of the texts looked through in which the student has most tags wrong."""
        texts = self.data.test[:_LOOKED_THROUGH]
        examples = TokenTags.of(texts, self.tokenizer, self.ids, self.limit)
        found = {name: self._tags(model, examples, len(texts)) for name, model in models.items()}
        wrong = [sum(map(str.__ne__, own, one.tags)) for own, one in zip(found["student"], texts, strict=True)]
        return [
            SampleGroup.of(
                texts[i].text,
                {
                    "reference": marked_text(texts[i].words, texts[i].tags),
                    **{name: marked_text(texts[i].words, tags[i]) for name, tags in found.items()},
                },
                label="Text",
            )
            for i in sorted(range(len(texts)), key=lambda i: -wrong[i])[:_SAMPLES]
        ]


def marked_text(words: Sequence[str], tags: Sequence[str]) -> str:
    """A text with its entities in brackets: [Marie Curie PER] was born in [Warsaw LOC]."""
    parts, place = [], 0
    for kind, first, last in entities(tags):
        parts += [*words[place:first], f"[{' '.join(words[first:last])} {kind}]"]
        place = last
    return " ".join([*parts, *words[place:]])


@torch.inference_mode()
def word_logits(model: Any, examples: TokenTags, count: int, batch_size: int = 32) -> list[np.ndarray]:
    """Of each of the first `count` texts (words, C) FP32, read in batches of about one length; NaN of words that have
    no token, or were cut off."""
    order = np.argsort([len(ids) for ids in examples.ids[:count]], kind="stable")
    found: list[np.ndarray] = [np.empty((0, 0))] * count
    with evaluating(model) as device:
        for start in range(0, count, batch_size):
            index = torch.from_numpy(order[start : start + batch_size].copy())
            batch = examples.batch(index)
            chosen = torch.zeros_like(batch.input_ids, dtype=torch.bool)
            for row, i in enumerate(index.tolist()):
                chosen[row, examples.firsts[i][examples.firsts[i] >= 0]] = True
            logits = run_head_on(model, batch.to(device).model_inputs, chosen.to(device))[0].float().cpu().numpy()
            place = 0
            for i in index.tolist():
                read = examples.firsts[i] >= 0
                found[i] = np.full((len(read), logits.shape[1]), np.nan, dtype=np.float32)
                found[i][read] = logits[place : place + read.sum()]
                place += int(read.sum())
    return found


def find_entities(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[list[list[dict[str, Any]]], int]:
    """Find what a model's tags mark in texts.

    Args:
        texts: what is beyond the model's positions is cut off.

    Returns:
        Of each text its entities in order: `text`, `label`, `probability` (of its words' tags, on the average), and
        `start` and `end`, its characters; and how many texts were too long.

    Raises:
        AbridgedError: the model does not label tokens.
    """
    if not labels_tokens(model):
        raise AbridgedError(f"a {type(model).__name__} does not label tokens: fine-tune one with tags of words")
    if isinstance(texts, str):
        raise AbridgedError("find_entities takes a list of texts")
    refuse_half_characters(*texts)
    split = [Tagged.of_text(text) for text in texts]
    limit = min(int(tokenizer.model_max_length), context_of(model.config))
    examples = TokenTags.of(split, tokenizer, None, limit) if split else None
    logits = word_logits(model, examples, len(split)) if examples is not None else []
    found = [_found(one, rows, model.config.id2label) for one, rows in zip(split, logits, strict=True)]
    return found, 0 if examples is None else examples.cut


def _found(one: Tagged, logits: np.ndarray, names: Mapping[int, str]) -> list[dict[str, Any]]:
    chances = torch.from_numpy(logits).softmax(-1).numpy()
    tags = [NO_TAG if np.isnan(row[0]) else names[int(row.argmax())] for row in chances]
    best = chances.max(-1, initial=0.0)
    return [
        {
            "text": one.text[one.spans[first][0] : one.spans[last - 1][1]],
            "label": kind,
            "probability": float(best[first:last].mean()),
            "start": one.spans[first][0],
            "end": one.spans[last - 1][1],
        }
        for kind, first, last in entities(tags)
    ]

"""Labelling texts, or pairs of them, and giving them scores: what BERT is fine-tuned for."""

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
from abridged.data.labelled import Labelled, LabelledData, TokenSentences
from abridged.data.rows import listed
from abridged.data.text import load_text, sentences
from abridged.evaluation.scores import score
from abridged.families.kinds import LabelSet, context_of, labels_texts
from abridged.report.data import SampleGroup
from abridged.tasks.augment import augmented
from abridged.tasks.base import LABELLING, Split, Task

_PICTURED = 16
_SAMPLES = 6


class Classification(Task):
    """Labelled texts in three parts; measured by the metrics of the task.

    Raises:
        AbridgedError: the data's labels are not the model's.
    """

    defaults: ClassVar[dict[str, Any]] = LABELLING

    takes = frozenset({"texts", "augmentation"})
    data: LabelledData

    def __init__(self, model: Any, tokenizer: Any, data: LabelledData) -> None:
        super().__init__(model, tokenizer, data)
        self.source = str(model.name_or_path)  # what proposes words where texts are augmented
        self.ids = label_ids(model, self.data)
        # F1 is of the second label of two, both of which must be there
        several = data.task is None and self.ids is not None and model.config.num_labels > 2
        self.metrics = ("accuracy",) if several else data.metrics
        self.names = {i: label for label, i in (self.ids or {}).items()}
        self.limit = min(int(tokenizer.model_max_length), self.limit)

    def _examples(self, settings: TrainingSettings) -> TokenSentences:
        context = settings.context_within(self.limit)
        if settings.texts is not None:
            found = self._unlabelled(settings.texts, context)
        elif settings.augmentation is not None:
            found = self._augmented(settings, context)
        else:
            found = self._of("train", context)
        if found.cut:
            self._note(f"{found.cut} of {len(found)} texts are longer than the context and lose their ends")
        return found

    def _of(self, split: str, context: int) -> TokenSentences:
        rows = getattr(self.data, split)
        return self._once((split, context), lambda: TokenSentences.of(rows, self.tokenizer, self.ids, context))

    def _augmented(self, settings: TrainingSettings, context: int) -> TokenSentences:
        asked, seed = settings.augmentation, settings.seed
        assert asked is not None

        def make() -> TokenSentences:
            rows = augmented(self.data.train, asked, self.source, seed)
            return TokenSentences.of(rows, self.tokenizer, self.ids, context)

        return self._once((asked.model_dump_json(), context), make)

    def _unlabelled(self, texts: str, context: int) -> TokenSentences:
        """Sentences of a text, or two that follow each other where the task has pairs; their labels say nothing."""

        def make() -> TokenSentences:
            found = sentences(load_text(texts).train)
            pairs = self.data.train[0].second is not None
            nexts: list[str] | list[None] = found[1:] if pairs else [None] * len(found)
            rows = [Labelled(first, second, 0.0) for first, second in zip(found, nexts, strict=False)]
            if not rows:
                raise AbridgedError(f"the text '{texts}' has no {'pair of sentences' if pairs else 'sentence'}")
            return TokenSentences.of(rows, self.tokenizer, None, context)

        return self._once((f"texts {texts}", context), make)

    def facts(self) -> dict[str, Any]:
        others = ("validation", "test", "texts ")
        told = (e for (split, _), e in self._encoded.items() if not split.startswith(others))
        found = next(told, None) or self._of("train", self.limit)
        return {
            "labels": None if self.data.labels is None else list(self.data.labels),
            "train_texts": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
            "texts_cut": found.cut,
            "rows_dropped": self.data.dropped,
        }

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        examples = self._of("validation", settings.context_within(self.limit))
        count = min(len(examples), max(1, round(settings.evaluate_tokens / examples.tokens_in_example)))
        return lambda: self._measure(model, examples, count)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        examples = self._of(split, settings.context_within(self.limit))
        return self._measure(model, examples, len(examples)).also(texts=len(examples))

    def _measure(self, model: Any, examples: TokenSentences, count: int) -> Measured:
        logits = label_logits(model, examples, count)
        predicted = logits[:, 0] if self.ids is None else logits.argmax(-1)
        return score(self.metrics, predicted, examples.labels[:count])

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        examples = self._of("to_evaluate", settings_to_read(context).context_within(self.limit))
        count = min(len(examples), limit or len(examples))
        return self._measure(model, examples, count).also(texts=count)

    def picture(self) -> Batch:
        some = self.data.test[:_PICTURED]
        return TokenSentences.of(some, self.tokenizer, self.ids, self.limit).batch(torch.arange(len(some)))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = self.data.test[:_SAMPLES]
        examples = TokenSentences.of(some, self.tokenizer, self.ids, self.limit)
        logits = {name: label_logits(model, examples, len(some)) for name, model in models.items()}
        groups = []
        for number, row in enumerate(some):
            said = {name: self._said(found[number]) for name, found in logits.items()}
            text = row.first if row.second is None else f"{row.first}  //  {row.second}"
            groups.append(SampleGroup.of(text, {"reference": str(row.label), **said}, label="Text"))
        return groups

    def _said(self, logits: np.ndarray) -> str:
        if self.ids is None:
            return f"{float(logits[0]):.2f}"
        chances = np.exp(logits - logits.max())
        best = int(logits.argmax())
        return f"{self.names[best]} ({100 * chances[best] / chances.sum():.0f} %)"


def label_ids(model: Any, data: LabelledData) -> dict[str, int] | None:
    """The model's ids of the data's labels; None for scores.

    Raises:
        AbridgedError: the model has other labels, or gives scores where there are labels, or the other way about.
    """
    config = model.config
    if data.labels is None or config.num_labels == 1:
        if data.labels is not None or config.num_labels != 1:
            kinds = ("scores", "labels") if config.num_labels == 1 else ("labels", "scores")
            raise AbridgedError(f"the model gives {kinds[0]}, and '{data.name}' has {kinds[1]}")
        return None
    own = LabelSet(data.labels).ids(config)
    strange = [label for label in data.labels if label not in own]
    if strange:
        raise AbridgedError(
            f"'{data.name}' has the label '{strange[0]}', and the model's labels are {listed(list(config.label2id))}: "
            "fine-tune a model for these labels, or rename them, in the data or in id2label and label2id of the "
            "model's config.json"
        )
    return own


@torch.inference_mode()
def label_logits(model: Any, examples: TokenSentences, count: int, batch_size: int = 32) -> np.ndarray:
    """(count, C) FP32 of the first examples, read in batches of about one length."""
    order = np.argsort([len(ids) for ids in examples.ids[:count]], kind="stable")
    found: np.ndarray | None = None
    with evaluating(model) as device:
        for start in range(0, count, batch_size):
            index = torch.from_numpy(order[start : start + batch_size].copy())
            logits = model(**examples.batch(index).to(device).model_inputs).logits.float().cpu().numpy()
            found = np.empty((count, logits.shape[1]), dtype=np.float32) if found is None else found
            found[index.numpy()] = logits
    assert found is not None
    return found


def classify(
    model: Any, tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """Label texts, or pairs of them.

    Args:
        texts: what is beyond the model's positions is cut off.
        seconds: the second of each pair, where the model labels pairs.

    Returns:
        Of each text the probability of every label by its name; {"score": …} of a model that gives scores.

    Raises:
        AbridgedError: the model does not label texts, or there are not as many seconds as texts.
    """
    if not labels_texts(model):
        raise AbridgedError(f"a {type(model).__name__} does not label texts: fine-tune one with labels")
    if isinstance(texts, str) or (seconds is not None and len(seconds) != len(texts)):
        raise AbridgedError("classify takes a list of texts, and as many seconds where the model labels pairs")
    if not texts:
        return []
    refuse_half_characters(*texts, *(seconds or ()))
    rows = [Labelled(text, None if seconds is None else seconds[i], 0.0) for i, text in enumerate(texts)]
    limit = min(int(tokenizer.model_max_length), context_of(model.config))
    logits = label_logits(model, TokenSentences.of(rows, tokenizer, None, limit), len(rows))
    if model.config.num_labels == 1:
        return [{"score": float(row[0])} for row in logits]
    chances = torch.from_numpy(logits).softmax(-1).tolist()
    return [{model.config.id2label[i]: chance for i, chance in enumerate(row)} for row in chances]

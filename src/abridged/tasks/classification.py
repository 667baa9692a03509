"""Labelling texts, or pairs of them, and giving them scores: what BERT is fine-tuned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from abridged.data.augment import augmented
from abridged.data.batch import Batch
from abridged.data.labelled import Labelled, LabelledData, TokenSentences, load_labelled
from abridged.data.text import load_text, sentences
from abridged.errors import AbridgedError
from abridged.evaluation.scores import score
from abridged.models import labels_texts
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task, refuse_stride
from abridged.training.settings import TrainingSettings

_PICTURED = 16
_SAMPLES = 6


class Classification(Task):
    """Labelled texts in three parts; measured by the metrics of the task.

    Raises:
        AbridgedError: see `load_labelled`; or the data's labels are not the model's.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 4, "learning_rate": 5e-5, "batch_size": 32, "warmup": 0.1, "weight_decay": 0.01, "keep": "best",
        "evaluate_every": 100,
    }  # fmt: skip

    def __init__(
        self, model: Any, tokenizer: Any, data: str | Path, task: str | None, columns: tuple[str, ...] | None
    ) -> None:
        self.source = str(model.name_or_path)  # what proposes words where texts are augmented
        self.data = load_labelled(data, task, columns)
        self.name, self.has_test = self.data.name, self.data.test is not self.data.validation
        self.notes = [f"{self.data.dropped} rows without a text or a label are left out"] if self.data.dropped else []
        self.tokenizer, self.ids = tokenizer, label_ids(model, self.data)
        self.names = {i: label for label, i in (self.ids or {}).items()}
        self.limit = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
        self._encoded: dict[tuple[str, int], TokenSentences] = {}

    def examples(self, settings: TrainingSettings) -> TokenSentences:
        context = settings.context_within(self.limit)
        if settings.texts is not None:
            found = self._unlabelled(settings.texts, context)
        elif settings.augmentation is not None:
            found = self._augmented(settings, context)
        else:
            found = self._of("train", context)
        note = f"{found.cut} of {len(found)} texts are longer than the context and lose their ends"
        if found.cut and note not in self.notes:
            self.notes.append(note)
        return found

    def _of(self, split: str, context: int) -> TokenSentences:
        if (split, context) not in self._encoded:
            rows = getattr(self.data, split)
            self._encoded[split, context] = TokenSentences.of(rows, self.tokenizer, self.ids, context)
        return self._encoded[split, context]

    def _augmented(self, settings: TrainingSettings, context: int) -> TokenSentences:
        assert settings.augmentation is not None
        key = (settings.augmentation.model_dump_json(), context)
        if key not in self._encoded:
            rows = augmented(self.data.train, settings.augmentation, self.source, settings.seed)
            self._encoded[key] = TokenSentences.of(rows, self.tokenizer, self.ids, context)
        return self._encoded[key]

    def _unlabelled(self, texts: str, context: int) -> TokenSentences:
        """Sentences of a text, or two that follow each other where the task has pairs; their labels say nothing."""
        key = (f"texts {texts}", context)
        if key not in self._encoded:
            found = sentences(load_text(texts).train)
            pairs = self.data.train[0].second is not None
            nexts: list[str] | list[None] = found[1:] if pairs else [None] * len(found)
            rows = [Labelled(first, second, 0.0) for first, second in zip(found, nexts, strict=False)]
            if not rows:
                raise AbridgedError(f"the text '{texts}' has no {'pair of sentences' if pairs else 'sentence'}")
            self._encoded[key] = TokenSentences.of(rows, self.tokenizer, None, context)
        return self._encoded[key]

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

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], dict[str, float]]:
        examples = self._of("validation", settings.context_within(self.limit))
        count = min(len(examples), max(1, round(settings.evaluate_tokens / examples.tokens_in_example)))

        def validate() -> dict[str, float]:
            measured = self._measure(model, examples, count)
            return {"score": measured.pop("score"), **measured}

        return validate

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> dict[str, Any]:
        examples = self._of(split, settings.context_within(self.limit))
        return {**self._measure(model, examples, len(examples)), "texts": len(examples)}

    def _measure(self, model: Any, examples: TokenSentences, count: int) -> dict[str, float]:
        logits = label_logits(model, examples, count)
        predicted = logits[:, 0] if self.ids is None else logits.argmax(-1)
        return score(self.data.metrics, predicted, examples.labels[:count])

    def evaluate(self, model: Any, context: int | None, stride: int | None) -> dict[str, Any]:
        refuse_stride(stride)
        return self.measure(model, "test", TrainingSettings(context=context))

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
    own = {str(label): int(i) for label, i in config.label2id.items()}
    strange = [label for label in data.labels if label not in own]
    if strange:
        raise AbridgedError(
            f"'{data.name}' has the label '{strange[0]}', and the model's labels are {', '.join(own)}: fine-tune a "
            "model for these labels, or rename them"
        )
    return own


@torch.inference_mode()
def label_logits(model: Any, examples: TokenSentences, count: int, batch_size: int = 32) -> np.ndarray:
    """(count, C) FP32 of the first examples, read in batches of about one length."""
    device = next(iter(model.parameters())).device
    was_training = model.training
    model.eval()
    order = np.argsort([len(ids) for ids in examples.ids[:count]], kind="stable")
    found: np.ndarray | None = None
    for start in range(0, count, batch_size):
        index = torch.from_numpy(order[start : start + batch_size].copy())
        logits = model(**examples.batch(index).to(device).model_inputs).logits.float().cpu().numpy()
        found = np.empty((count, logits.shape[1]), dtype=np.float32) if found is None else found
        found[index.numpy()] = logits
    model.train(was_training)
    assert found is not None
    return found


def classify(
    model: Any, tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None = None
) -> list[dict[str, float]]:
    """What a model makes of texts, or of pairs of them: the probability of each label, or {"score": …}.

    Raises:
        AbridgedError: the model does not label texts.
    """
    if not labels_texts(model):
        raise AbridgedError(f"a {type(model).__name__} does not label texts: fine-tune one with labels")
    rows = [Labelled(text, None if seconds is None else seconds[i], 0.0) for i, text in enumerate(texts)]
    limit = min(int(tokenizer.model_max_length), int(model.config.max_position_embeddings))
    logits = label_logits(model, TokenSentences.of(rows, tokenizer, None, limit), len(rows))
    if model.config.num_labels == 1:
        return [{"score": float(row[0])} for row in logits]
    chances = torch.from_numpy(logits).softmax(-1).tolist()
    return [{model.config.id2label[i]: chance for i, chance in enumerate(row)} for row in chances]

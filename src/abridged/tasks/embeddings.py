"""Making vectors of sentences: what a small model learns of a large one without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.settings import TrainingSettings, settings_to_read
from abridged.data.batch import Batch
from abridged.data.sentences import ScoredPair, SentenceData, TokenTexts
from abridged.evaluation.sentences import (
    Encoded,
    SentenceEncoder,
    agreement,
    nearest,
    score_agreement,
    sentence_vectors,
)
from abridged.families import view
from abridged.models.sentence import SentenceSettings
from abridged.objectives.layers import widened
from abridged.report.data import SampleGroup, SentencePicture
from abridged.storage.compressed import compressed_of
from abridged.tasks.base import Split, Task
from abridged.tasks.sentence_pictures import COMPARED, sentence_picture

_PICTURED = 16
_SAMPLES = 6


class Embeddings(Task):
    """Sentences in three parts. A model is measured by its agreement with the one that the task was made for, the
    teacher; and of pairs with scores by how well its cosines are in their order.

    Raises:
        AbridgedError: the model's weights are never held whole, so that it has no vectors to learn from.
    """

    compares: ClassVar[bool] = True

    data: SentenceData

    def __init__(self, model: Any, tokenizer: Any, data: SentenceData, settings: SentenceSettings) -> None:
        super().__init__(model, tokenizer, data)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise AbridgedError("vectors of sentences are not learned block by block: set stages.*.runner=whole")
        self.teacher, self.encoder = model, SentenceEncoder(model, tokenizer, settings)
        self.limit = self.encoder.limit
        self.notes += [note for note in [self.encoder.note] if note]

    def _examples(self, settings: TrainingSettings) -> TokenTexts:
        found = self._of("train", settings.context_within(self.limit))
        if found.cut:
            self._note(f"{found.cut:,} of {len(found):,} texts are longer than {self.limit} tokens and lose their ends")
        return found

    def _of(self, part: str, context: int) -> TokenTexts:
        """A part's sentences as token ids."""
        return self._once((part, context), lambda: self.encoder.tokens(getattr(self.data, part), limit=context))

    def facts(self) -> dict[str, Any]:
        found = next((one for (part, _), one in self._encoded.items() if part == "train"), None)
        found = found or self._of("train", self.limit)
        return {
            "pooling": self.encoder.settings.pooling,
            "train_texts": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
            "texts_cut": found.cut,
            "rows_dropped": self.data.dropped,
        }

    def files(self, model: Any) -> dict[str, Any]:
        return self.encoder.settings.files_of(view(model).hidden_size)

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        some = self._of("validation", settings.context_within(self.limit))
        count = max(2, round(settings.evaluate_tokens / some.tokens_in_example))
        tokens = self.encoder.tokens(self.data.validation[:count])
        pairs = self.data.scored.get("validation", ())[:count]
        return lambda: Measured(self._measured(model, tokens, pairs))

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        tokens = self._of(split, self.limit)
        return Measured(self._measured(model, tokens, self.data.scored.get(split, ())), texts=len(tokens))

    def _measured(self, model: Any, tokens: TokenTexts, pairs: Sequence[ScoredPair]) -> list[Measurement]:
        """Agreement with the teacher on texts, and what the scores of pairs say."""
        key = ("teacher's vectors", tokens.fingerprint())
        reference = self._once(key, lambda: self._reference(tokens))
        found = agreement(self._vectors(model, tokens), reference)
        return found + ([self._scored(model, pairs)] if pairs else [])

    @staticmethod
    def _vectors(model: Any, tokens: TokenTexts) -> np.ndarray:
        """A model's vectors; of one that was cut to some of the teacher's units they stand for as wide ones."""
        found, units = sentence_vectors(model, tokens), compressed_of(model).hidden_units
        if units is None:
            return found
        return widened(torch.from_numpy(found), units, int(model.config.hidden_size)).numpy()

    def _reference(self, tokens: TokenTexts) -> np.ndarray:
        """The teacher's vectors, in FP32 even where it is training that first asks for them."""
        with torch.autocast(self.teacher.device.type, enabled=False):
            return sentence_vectors(self.teacher, tokens)

    def _scored(self, model: Any, pairs: Sequence[ScoredPair], limit: int | None = None) -> Measurement:
        if len(pairs) < 2:
            raise AbridgedError("one pair with a score has no order to tell: give several")
        vectors = sentence_vectors(model, self.encoder.tokens(_both(pairs), limit=limit))
        return score_agreement(vectors[::2], vectors[1::2], np.array([pair.score for pair in pairs]))

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        pairs = self.data.scored_to_evaluate[:limit]
        if not pairs:
            raise AbridgedError(
                f"'{self.name}' has no pairs with scores to measure vectors by: give rows of two texts and a score, "
                "with --task stsb"
            )
        limit = settings_to_read(context).context_within(self.limit)
        cut = self.encoder.tokens(_both(pairs), limit=limit).cut
        return Measured([self._scored(model, pairs, limit)], pairs=len(pairs), texts_cut=cut)

    def picture(self) -> Batch:
        some = self.encoder.tokens(self.data.test[:_PICTURED])
        return some.batch(torch.arange(len(some)))

    def sentences(self, models: Mapping[str, Any]) -> SentencePicture | None:
        tokens = self.encoder.tokens(self.data.test[:COMPARED])
        return sentence_picture(
            self.data.test[:COMPARED], {name: self._vectors(model, tokens) for name, model in models.items()}
        )

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        """The sentence that each model takes for the nearest to some."""
        texts, tokens = self.data.test, self._of("test", self.limit)
        found = {name: nearest(sentence_vectors(model, tokens), 1)[:, 0] for name, model in models.items()}
        return [
            SampleGroup.of(texts[i], {name: texts[int(near[i])] for name, near in found.items()}, label="Nearest to")
            for i in range(min(_SAMPLES, len(texts)))
        ]


def _both(pairs: Sequence[ScoredPair]) -> list[str]:
    return [text for pair in pairs for text in (pair.first, pair.second)]


def embed(model: Any, tokenizer: Any, texts: Sequence[str], prompt: str | None = None) -> Encoded:
    """Make vectors of texts.

    Args:
        texts: what is beyond what the model reads is cut off.
        prompt: the name of what is put before each, of those that the model has.

    Returns:
        `vectors`: (n, d) FP32, and `cut`: how many texts were too long.

    Raises:
        AbridgedError: the model makes no vectors, has no such prompt, or a text is empty.
    """
    if isinstance(texts, str):
        raise AbridgedError("embed takes a list of texts")
    return SentenceEncoder(model, tokenizer).encode(texts, prompt)

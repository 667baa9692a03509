"""Making one text of another, such as a summary of a document: what BART is fine-tuned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from abridged.core.measurement import Measured
from abridged.core.progress import counter
from abridged.core.settings import TrainingSettings, settings_to_read
from abridged.data.batch import Batch
from abridged.data.pairs import PairData, Specials, TokenPairs
from abridged.evaluation.perplexity import reference_perplexity
from abridged.evaluation.summaries import has_rouge, rouge, summarize
from abridged.report.data import SampleGroup
from abridged.tasks.base import Split, Task

_PICTURED = 16  #: pairs whose targets the report draws, token by token
_SAMPLES = 4
#: Pairs of the test part that ROUGE is measured on after training; `abridged evaluate` reads all.
ROUGE_PAIRS = 256


class SequenceToSequence(Task):
    """Pairs in three parts; measured by the perplexity of the targets and by ROUGE.

    Attributes:
        rouge_pairs: how many of the test part ROUGE is measured on; all when None.

    Raises:
        AbridgedError: see `Specials.of`.
    """

    def __init__(self, model: Any, tokenizer: Any, pairs: PairData) -> None:
        super().__init__(model, tokenizer, pairs)
        self.pairs, self.specials = pairs, Specials.of(tokenizer, model.config)
        self.rouge_pairs: int | None = ROUGE_PAIRS
        if not has_rouge():
            self.notes.append("ROUGE is left out of what is measured: pip install 'abridged[summaries]' brings it")

    def _examples(self, settings: TrainingSettings) -> TokenPairs:
        found = self._of("train", settings)
        for what, cut in (("source", found.source_cut), ("target", found.target_cut)):
            limit = settings.context_within(self.limit) if what == "source" else self._target(settings)
            if cut:
                self._note(f"{cut} of {len(found)} {what}s are longer than {limit} tokens and lose their ends")
        return found

    def _target(self, settings: TrainingSettings) -> int:
        return min(settings.target_context or self.limit, self.limit)

    def _of(self, split: str, settings: TrainingSettings) -> TokenPairs:
        key = (split, settings.context_within(self.limit), self._target(settings))
        pairs = getattr(self.pairs, split)
        return self._once(key, lambda: TokenPairs.of(pairs, self.tokenizer, self.specials, *key[1:]))

    def facts(self) -> dict[str, Any]:
        found = next(e for (split, *_), e in self._encoded.items() if split == "train")
        return {
            "columns": list(self.pairs.columns),
            "train_pairs": len(found),
            "train_tokens": round(found.tokens_in_example * len(found)),
            "sources_cut": found.source_cut,
            "targets_cut": found.target_cut,
            "rows_dropped": self.pairs.dropped,
        }

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        examples = self._of("validation", settings)
        limit = max(1, round(settings.evaluate_tokens / examples.tokens_in_example))
        return lambda: Measured(self._perplexity(model, "validation", settings, limit).measurements)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        """Perplexity of all targets; of the test part also ROUGE of the first `rouge_pairs`, where it is installed."""
        measured = self._perplexity(model, split, settings)
        if split != "test" or not has_rouge():
            return measured
        some = self.pairs.test[: self.rouge_pairs]
        with counter("summaries") as show:
            sources = [pair.source for pair in some]
            written = summarize(model, self.tokenizer, sources, show=lambda done: show(done, len(some)))
        return measured.also(rouge=rouge(written.texts, some), rouge_pairs=len(some))

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        context = settings_to_read(context).context_within(self.limit)
        pairs = self.pairs.to_evaluate[:limit]
        encoded = TokenPairs.of(pairs, self.tokenizer, self.specials, context, self.limit)
        words = sum(len(pair.target.split()) + 1 for pair in pairs)
        measured = reference_perplexity(model, encoded, words, len(self.specials.before))
        return measured.also(sources_cut=encoded.source_cut, targets_cut=encoded.target_cut)

    def _perplexity(self, model: Any, split: str, settings: TrainingSettings, limit: int | None = None) -> Measured:
        words = sum(len(pair.target.split()) + 1 for pair in getattr(self.pairs, split))
        return reference_perplexity(model, self._of(split, settings), words, len(self.specials.before), limit)

    def picture(self) -> Batch:
        some = self.pairs.test[:_PICTURED]
        pairs = TokenPairs.of(some, self.tokenizer, self.specials, self.limit, self.limit)
        return pairs.batch(torch.arange(len(some)))

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = self.pairs.test[:_SAMPLES]
        sources = [pair.source for pair in some]
        written = {name: summarize(model, self.tokenizer, sources).texts for name, model in models.items()}
        groups = []
        for number, pair in enumerate(some):
            texts = {"reference": pair.target, **{name: texts[number] for name, texts in written.items()}}
            groups.append(SampleGroup.of(pair.source, texts, label="Document"))
        return groups

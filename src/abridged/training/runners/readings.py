"""The batches that a run block by block reads, again and again: for methods that look at inputs, and for training."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.examples import Examples, Order
from abridged.recipe import Stage
from abridged.training.processes import autocast

#: Sequences that activation quantisers see before training, and how many at once.
CALIBRATION_SEQUENCES, AT_ONCE = 16, 4


def few(examples: Examples, seed: int) -> list[Batch]:
    """A few small batches."""
    order = examples.order(seed, AT_ONCE)
    return [examples.batch(order[start : start + AT_ONCE]) for start in range(0, CALIBRATION_SEQUENCES, AT_ONCE)]


def many(examples: Examples, seed: int, tokens: int) -> Batch:
    """One batch of about so many tokens, of all lengths; padding may be three times as much."""
    count = min(tokens / examples.tokens_in_example, 4 * tokens / examples.context, len(examples))
    return examples.batch(Order(len(examples), seed)[0 : max(1, round(count))])


class Readings:
    """What a stage reads, by key; nothing where neither a method nor training asks.

    Attributes:
        keys: of the batches for "few" and "many" (see `abridged.methods.base.Pass`) and for "training".
    """

    def __init__(self, stage: Stage, examples: Examples, show: bool) -> None:
        settings, asked = stage.training, {one for method in stage.methods.values() for one in method.passes}
        self.settings = settings
        self._batches: dict[str, Batch] = {}
        self.keys: dict[str, list[str]] = {"few": [], "many": [], "training": []}
        if "few" in asked:
            self._add("few", few(examples, settings.seed))
        if "many" in asked:
            self._add("many", [many(examples, settings.seed, stage.blocks.tokens)])
            there = len(examples) * examples.tokens_in_example
            if there < stage.blocks.tokens and show:
                print(
                    f"note: the data have {there:,.0f} tokens to look at, fewer than the {stage.blocks.tokens:,} of "
                    "blocks.tokens: all are read",
                    file=sys.stderr,
                )
        if stage.trains:
            self._add("training", self._to_train_on(stage, examples, show))

    def _to_train_on(self, stage: Stage, examples: Examples, show: bool) -> list[Batch]:
        size, wanted = stage.training.batch_size, stage.blocks.sequences
        count = min(wanted, len(examples))
        if count < size:
            raise AbridgedError(f"the data have {len(examples)} examples, and a step of training reads {size}")
        if count < wanted and show:
            print(
                f"note: the data have {count:,} examples, fewer than the {wanted:,} of blocks.sequences: all are read",
                file=sys.stderr,
            )
        order = examples.order(stage.training.seed, size)
        return [examples.batch(order[start : start + size]) for start in range(0, count - size + 1, size)]

    def _add(self, kind: str, batches: list[Batch]) -> None:
        for number, batch in enumerate(batches):
            self.keys[kind].append(f"{kind}{number}")
            self._batches[f"{kind}{number}"] = batch

    @property
    def all_keys(self) -> list[str]:
        return list(self._batches)

    def __getitem__(self, key: str) -> Batch:
        return self._batches[key]

    def precision(self, key: str) -> AbstractContextManager[object]:
        """The context in which a batch is read: clips are calibrated in FP32."""
        return nullcontext() if key in self.keys["few"] else autocast(self.settings)

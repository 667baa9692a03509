"""What a trainer needs to know of its data, whatever they are, and the order in which it reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from abridged.data.batch import Batch

#: Batches whose examples are sorted by length among themselves: enough to pad little, few enough to stay random.
_SORTED_BATCHES = 32


class Examples(Protocol):
    """Tokenised training data: blocks of a text, pairs of texts, texts with noise."""

    @property
    def context(self) -> int:
        """The most labels that an example has."""
        ...

    @property
    def tokens_in_example(self) -> float:
        """Tokens that the model reads of an example, on the average; speed is counted in them."""
        ...

    @property
    def same_length(self) -> bool:
        """Whether all batches have one shape, so that compiling for it pays."""
        ...

    def __len__(self) -> int: ...

    def batch(self, index: torch.Tensor) -> Batch:
        """The examples at `index`; what is random in them is drawn from torch's global generator."""
        ...

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them."""
        ...

    def fingerprint(self) -> str:
        """A hash of all that `batch` depends on."""
        ...


class Subset:
    """A part of some examples: always the same ones, drawn at random once."""

    def __init__(self, examples: Examples, share: float) -> None:
        self.whole, self.share = examples, share
        chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
        self.chosen = chosen[: max(1, round(share * len(examples)))].sort().values

    @property
    def context(self) -> int:
        return self.whole.context

    @property
    def tokens_in_example(self) -> float:
        return self.whole.tokens_in_example

    @property
    def same_length(self) -> bool:
        return self.whole.same_length

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, index: torch.Tensor) -> Batch:
        return replace(self.whole.batch(self.chosen[index]), index=index)

    def order(self, seed: int, batch_size: int) -> Order:
        lengths = self.whole.order(seed, batch_size).lengths
        return Order(len(self), seed, None if lengths is None else lengths[self.chosen.numpy()], batch_size)

    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint()}-{self.share:g}"


class Order:
    """An endless shuffled order of examples that is a pure function of the seed: resuming needs only the step."""

    def __init__(self, examples: int, seed: int, lengths: np.ndarray | None = None, batch_size: int = 1) -> None:
        """With `lengths` (examples,), those of a batch are about as long as each other, so that little is padded."""
        self.examples, self.seed, self.lengths, self.batch_size = examples, seed, lengths, batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: slice) -> torch.Tensor:
        """Numbers of the examples at positions start…stop of the endless order, int64 (stop - start,)."""
        return torch.stack([self._at(i) for i in range(position.start, position.stop)])

    def _at(self, position: int) -> torch.Tensor:
        epoch, place = divmod(position, self.examples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, self._shuffled(generator)
        return self._order[place]

    def _shuffled(self, generator: torch.Generator) -> torch.Tensor:
        """The order of one pass."""
        order = torch.randperm(self.examples, generator=generator)
        return order if self.lengths is None else self._by_length(order, generator)

    def _by_length(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert self.lengths is not None
        batches: list[torch.Tensor] = []
        for some in order.split(_SORTED_BATCHES * self.batch_size):
            batches += some[torch.from_numpy(np.argsort(self.lengths[some.numpy()], kind="stable"))].split(
                self.batch_size
            )
        last = [batches.pop()] if len(batches[-1]) < self.batch_size else []  # what is short would shift all after it
        mixed = torch.randperm(len(batches), generator=generator).tolist()
        return torch.cat([*(batches[i] for i in mixed), *last])

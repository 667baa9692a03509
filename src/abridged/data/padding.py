"""Token ids of several lengths put into one rectangle, and texts that are padded so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from abridged.data.batch import Batch
from abridged.data.examples import Order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Lengths are rounded up to this, so that matrix products are of sizes that hardware likes.
_ROUND = 8


def tokenized(
    tokenizer: PreTrainedTokenizerBase, limit: int, *texts: Sequence[str], **more: Any
) -> tuple[dict[str, Any], int]:
    """Texts, or pairs of them, as token ids, and how many were longer than `limit` and are cut.

    Args:
        more: what the tokenizer is asked for beside `input_ids`.

    Returns:
        What it gives, and with it `ids` and `types` as `PaddedTexts` has them.
    """
    given: Any = {"return_attention_mask": False, "verbose": False, **more}
    found = tokenizer(*texts, **given)
    cut = sum(len(ids) > limit for ids in found["input_ids"])
    if cut:
        found = tokenizer(*texts, truncation=True, max_length=limit, **given)
    ids = [np.asarray(one, dtype=np.int64) for one in found["input_ids"]]
    types = found.get("token_type_ids")
    types = None if types is None else [np.asarray(one, dtype=np.int64) for one in types]
    return {**found, "ids": ids, "types": types}, cut


def rectangle(rows: Sequence[np.ndarray], filling: int, length: int | None = None) -> Tensor:
    """Rows of ids as (rows, length) int64, filled up to `length`, or to the longest rounded up."""
    length = length or -(-max(map(len, rows)) // _ROUND) * _ROUND
    filled = np.full((len(rows), length), filling, dtype=np.int64)
    for line, row in zip(filled, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(filled)


def mask_of(rows: Sequence[np.ndarray], ids: Tensor) -> Tensor:
    """(rows, length) int64, 1 where `ids`, made of `rows`, is not padded."""
    lengths = torch.tensor([len(row) for row in rows])
    return (torch.arange(ids.shape[1]) < lengths.unsqueeze(-1)).long()


def digest_of(head: bytes, rows: Iterable[np.ndarray]) -> str:
    """A hash of rows of ids, each with its length, and of what goes before them."""
    digest = hashlib.sha256(head)
    for row in rows:
        digest.update(len(row).to_bytes(4, "little") + row.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class PaddedTexts:
    """Texts as token ids, each with labels for the whole of it; an encoder reads them padded."""

    ids: list[np.ndarray]  #: special tokens included
    types: list[np.ndarray] | None  #: 0 for the first text, 1 for the second; None where the model knows no types
    labels: np.ndarray  #: (examples, …)
    pad: int

    @property
    def context(self) -> int:
        return max(map(len, self.ids))

    @property
    def tokens_in_example(self) -> float:
        return float(np.mean([len(ids) for ids in self.ids]))

    @property
    def same_length(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: Tensor) -> Batch:
        """The texts at `index`, padded to the longest among them."""
        numbers = index.tolist()
        rows = [self.ids[i] for i in numbers]
        ids = rectangle(rows, self.pad)
        return Batch.of(
            input_ids=ids,
            labels=torch.from_numpy(self.labels[numbers]),
            index=index,
            attention_mask=mask_of(rows, ids),
            token_types=None if self.types is None else rectangle([self.types[i] for i in numbers], 0),
        )

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them: batches of about one length."""
        return Order(len(self), seed, np.array([len(ids) for ids in self.ids]), batch_size)

    def fingerprint(self) -> str:
        """A hash of all token ids and labels."""
        return digest_of(self.labels.tobytes(), (*self.ids, *(self.types or ())))

"""Tokenised text, and the blocks that it is cut into."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.examples import Order

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Characters in a piece of text that is tokenised on its own, and pieces at once: they bound memory (a list of ids
#: takes ten times that of the array made of it), and let the tokenizer use every core.
_CHUNK = 200_000
_CHUNKS_AT_ONCE = 16


def tokenize(tokenizer: "PreTrainedTokenizerBase", text: str) -> np.ndarray:
    """Token ids of a whole text, without special tokens, as int32 of shape (tokens,).

    Long texts are tokenised in pieces, cut at line ends where there are any.
    """
    chunks = _chunks(text)
    encoded = [np.zeros(0, dtype=np.int32)]
    while some := list(islice(chunks, _CHUNKS_AT_ONCE)):
        ids = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        encoded += [np.asarray(i, dtype=np.int32) for i in ids]
    return np.concatenate(encoded)


def specials_around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before a text and behind it."""
    text, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    place = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return whole[:place], whole[place + len(text) :]


def _chunks(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = len(text) if start + _CHUNK >= len(text) else text.rfind("\n", start, start + _CHUNK) + 1
        end = end if end > start else min(start + _CHUNK, len(text))
        yield text[start:end]
        start = end


@dataclass(frozen=True)
class Blocks:
    """A text as (context + 1)-token windows that overlap by one: every token but the first is predicted once."""

    tokens: np.ndarray  #: (tokens,) int32
    context: int

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise AbridgedError(
                f"the text has {len(self.tokens)} tokens, fewer than one context of {self.context} and the token after "
                "it: give more text, or a shorter context"
            )

    @property
    def tokens_in_example(self) -> float:
        return self.context

    @property
    def same_length(self) -> bool:
        return True

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.context)

    def batch(self, index: torch.Tensor) -> Batch:
        """The blocks at `index`, unpadded."""
        windows = np.stack([self.tokens[i * self.context : (i + 1) * self.context + 1] for i in index.tolist()])
        ids = torch.from_numpy(windows.astype(np.int64))
        return Batch.of(ids[:, :-1], ids[:, 1:], index)

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads the blocks."""
        return Order(len(self), seed)

    def fingerprint(self) -> str:
        """A hash of the tokens and the context."""
        return hashlib.sha256(self.tokens.tobytes() + str(self.context).encode()).hexdigest()[:16]

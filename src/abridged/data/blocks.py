"""Tokenised text cut into blocks, and the order in which training reads them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from abridged.errors import AbridgedError

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

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - 1) // self.context)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and the tokens after them, each (len(index), context) int64."""
        windows = np.stack([self.tokens[i * self.context : (i + 1) * self.context + 1] for i in index.tolist()])
        ids = torch.from_numpy(windows.astype(np.int64))
        return ids[:, :-1], ids[:, 1:]

    def fingerprint(self) -> str:
        """A hash of the tokens and the context."""
        return hashlib.sha256(self.tokens.tobytes() + str(self.context).encode()).hexdigest()[:16]


class BlockOrder:
    """An endless shuffled order of blocks that is a pure function of the seed: resuming needs only the step."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.blocks, self.seed = blocks, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: slice) -> torch.Tensor:
        """Block numbers at positions start…stop of the endless order, int64 (stop - start,)."""
        return torch.stack([self._at(i) for i in range(position.start, position.stop)])

    def _at(self, position: int) -> torch.Tensor:
        epoch, place = divmod(position, self.blocks)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.blocks, generator=generator)
        return self._order[place]

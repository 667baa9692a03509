"""Text with noise in it, and the text that it was: what BART is pre-trained on.

Source: Lewis et al., "BART", ACL 2020, section 2.2, arXiv:1910.13461: text infilling and sentence permutation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.data.pairs import Specials, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED_WORDS = 0.3
MEAN_SPAN = 3.0  #: of the Poisson distribution of words in a masked span


@dataclass(frozen=True)
class Vocabulary:
    """What noise needs to know of each vocabulary entry: (vocabulary,) bool arrays, and the mask's id."""

    begins_word: np.ndarray
    ends_sentence: np.ndarray
    mask: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Read off a byte-level tokenizer.

        Raises:
            AbridgedError: it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise AbridgedError("learning from text with noise in it needs a tokenizer with a mask token")
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        begins = np.array([piece.startswith(("Ġ", "Ċ")) for piece in pieces])
        ends = np.array([text.rstrip().endswith((".", "!", "?")) or "\n" in text for text in texts])
        return cls(begins, ends, tokenizer.mask_token_id)


def permute_sentences(tokens: np.ndarray, vocabulary: Vocabulary, random: np.random.Generator) -> np.ndarray:
    """The same tokens (n,) with their sentences in another order."""
    ends = np.flatnonzero(vocabulary.ends_sentence[tokens][:-1]) + 1
    sentences = np.split(tokens, ends)
    return np.concatenate([sentences[i] for i in random.permutation(len(sentences))])


def infill(tokens: np.ndarray, vocabulary: Vocabulary, random: np.random.Generator) -> np.ndarray:
    """The tokens (n,) with three in ten words gone: each span of them, some of no word at all, is one mask token."""
    starts = np.flatnonzero(vocabulary.begins_word[tokens])
    words = np.split(tokens, starts[starts > 0])
    gone = round(MASKED_WORDS * len(words))
    spans: list[int] = []
    while sum(spans) < gone:
        spans.append(min(int(random.poisson(MEAN_SPAN)), gone - sum(spans)))
    # Words that stay and spans in a random order: spans are placed as likely here as there, and never overlap.
    items = np.concatenate([np.full(len(words) - gone, -1), spans]).astype(np.int64)
    mask = np.array([vocabulary.mask], dtype=tokens.dtype)
    parts, place = [], 0
    for item in random.permutation(items):
        parts.append(words[place] if item < 0 else mask)
        place += 1 if item < 0 else item
    return np.concatenate(parts)


@dataclass(frozen=True)
class Denoising:
    """A text as windows of at most `context` tokens with their special ones; noise is drawn anew at each visit."""

    text: np.ndarray  #: (tokens,) int32
    context: int
    specials: Specials
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise AbridgedError(
                f"the text has {len(self.text)} tokens, fewer than one context of {self.context}: give more text, or a "
                "shorter context"
            )

    @property
    def window(self) -> int:
        """Tokens of the text in an example: the context less the special tokens around them."""
        return self.context - self.specials.count

    @property
    def tokens_in_example(self) -> float:
        return self.context

    @property
    def same_length(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.text) // self.window

    def batch(self, index: torch.Tensor) -> Batch:
        """The windows at `index`: with noise for the encoder, as they were for the decoder; (B, context) both."""
        random = np.random.default_rng(int(torch.randint(2**31, (1,))))
        sources, targets = [], []
        for i in index.tolist():
            tokens = self.text[i * self.window : (i + 1) * self.window]
            noisy = infill(permute_sentences(tokens, self.vocabulary, random), self.vocabulary, random)
            sources.append(self.specials.around(noisy[: self.window]))
            targets.append(self.specials.around(tokens))
        return pad(sources, targets, index, self.specials, source_length=self.context)

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads the windows."""
        return Order(len(self), seed)

    def fingerprint(self) -> str:
        """A hash of the tokens and the context."""
        return hashlib.sha256(self.text.tobytes() + f"{self.context} {self.specials}".encode()).hexdigest()[:16]

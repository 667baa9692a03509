"""Texts whose words have tags, such as names of people and places, and the same as token ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.dataset import PARTS, Dataset
from abridged.data.labelled import held_out
from abridged.data.padding import PaddedTexts, digest_of, rectangle, tokenized
from abridged.data.rows import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Signs of Chinese and Japanese, each of which is a word of its own.
_SIGNS = "\u3040-\u30ff\u3400-\u9fff"
#: What stands for a word in a text that nobody has split: such a sign; letters and digits, also around a hyphen, an
#: apostrophe or a point; any other sign.
_WORD = re.compile(rf"[{_SIGNS}]|[^\W{_SIGNS}]+(?:[-.'’][^\W{_SIGNS}]+)*|[^\w\s]")


@dataclass(frozen=True)
class Tagged:
    """The words of a text and their tags, as they are called; no tags where they are to be found."""

    text: str
    spans: tuple[tuple[int, int], ...]  #: first character of each word, and the one behind its last
    tags: tuple[str, ...] = ()

    @classmethod
    def of_words(cls, words: Sequence[str], tags: Sequence[str]) -> Tagged:
        """Words with spaces between them."""
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        spans = tuple((int(end) - len(word), int(end)) for end, word in zip(ends, words, strict=True))
        return cls(" ".join(words), spans, tuple(tags))

    @classmethod
    def of_text(cls, text: str) -> Tagged:
        """The words of a text that nobody has split."""
        return cls(text, tuple(found.span() for found in _WORD.finditer(text)))

    @property
    def words(self) -> list[str]:
        return [self.text[start:end] for start, end in self.spans]


@dataclass(frozen=True)
class TaggedData(Dataset):
    """Three parts. The test part is what is reported once; models are chosen on the validation part."""

    kind: ClassVar[str] = "tags"
    holds: ClassVar[str] = "texts with a tag for each word"

    name: str
    tags: tuple[str, ...]  #: in the order of their ids
    train: list[Tagged]
    validation: list[Tagged]
    test: list[Tagged]
    columns: tuple[str, str]  #: of words and tags
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: bool = True
    read: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        parts: Mapping[str, Sequence[Tagged]],
        columns: tuple[str, str],
        tags: Sequence[str] | None = None,
        seed: int = 0,
        **more: Any,
    ) -> TaggedData:
        """The texts of parts; a tenth of the training part is held out where there is no validation part.

        Args:
            tags: in the order of their ids; None: those that there are, by name.

        Raises:
            AbridgedError: there are none.
        """
        train, validation, test = (list(parts.get(part, ())) for part in PARTS)
        every = [*train, *validation, *test]
        if not every:
            raise AbridgedError(f"'{name}' holds no words with tags")
        split = bool(validation or test)
        if not validation:
            left, held = held_out(len(train), seed)
            train, validation = [train[i] for i in sorted(left)], [train[i] for i in sorted(held)]
        tags = tags or sorted({tag for one in every for tag in one.tags})
        return cls(name, tuple(tags), train, validation, test or validation, columns, split=split, **more)

    @property
    def words(self) -> str:
        return "\n".join(one.text for one in self.train)

    def _more(self) -> str:
        parts = (self.train, self.validation, self.test if self.has_test else [])
        counts = Counter(tag for part in parts for one in part for tag in one.tags)
        return f", {' and '.join(self.columns)} ({listed([f'{tag} {counts[tag]:,}' for tag in self.tags], 20)})"

    def check_to_learn(self) -> None:
        if len(self.tags) < 2:
            raise AbridgedError(f"'{self.name}' has fewer than two different tags in its column '{self.columns[1]}'")
        if not self.train:
            raise AbridgedError(f"'{self.name}' has one text, and needs one to learn from and one to choose by")

    def as_tagged(self) -> TaggedData:
        return self


@dataclass(frozen=True)
class TokenTags(PaddedTexts):
    """Tagged texts as token ids, cut to what the model's positions allow: a word's first token has its label."""

    tags: list[np.ndarray]  #: (tokens,) int64 of each text: the label of a word's first token, -100 of all others
    firsts: list[np.ndarray]  #: (words,) where each word's first token is; -1 where there is none, or it was cut off
    cut: int  #: how many were longer than allowed

    @classmethod
    def of(
        cls, texts: Sequence[Tagged], tokenizer: PreTrainedTokenizerBase, labels: Mapping[str, int] | None, context: int
    ) -> TokenTags:
        """Tokenise texts; `labels` maps names to the model's ids, None where there are no tags.

        Raises:
            AbridgedError: the tokenizer does not say which characters a token stands for.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise AbridgedError("tags of words need a tokenizer that says where its tokens are (a fast one)")
        whole, cut = tokenized(tokenizer, context, [one.text for one in texts], return_offsets_mapping=True)
        firsts = [first_tokens(one.spans, found) for one, found in zip(texts, whole["offset_mapping"], strict=True)]
        tags = []
        for one, first, ids in zip(texts, firsts, whole["input_ids"], strict=True):
            row = np.full(len(ids), -100, dtype=np.int64)
            if labels is not None:
                known = np.array([labels[tag] for tag in one.tags], dtype=np.int64)
                row[first[first >= 0]] = known[first >= 0]
            tags.append(row)
        return cls(
            ids=whole["ids"],
            types=whole["types"],
            labels=np.zeros(len(texts), dtype=np.int64),
            pad=tokenizer.pad_token_id or 0,
            tags=tags,
            firsts=firsts,
            cut=cut,
        )

    @property
    def context(self) -> int:
        return max(map(len, self.ids))

    def batch(self, index: Tensor) -> Batch:
        """The texts at `index`, padded to the longest among them; labels (B, T)."""
        return replace(
            super().batch(index), labels=rectangle([self.tags[i] for i in index.tolist()], -100), sparse=True
        )

    def fingerprint(self) -> str:
        """A hash of all token ids and labels."""
        return digest_of(b"tags", (*self.ids, *self.tags, *(self.types or ())))


def first_tokens(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(words,) the first token of each word, -1 where it has none.

    Args:
        spans: characters of the words, in order.
        offsets: (tokens, 2) characters that each token stands for; none of a special token. A byte-level token may
            take the space before its word along, so that its last character says whose it is.
    """
    first = np.full(len(spans), -1, dtype=np.int64)
    places = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    if len(spans) == 0 or len(places) == 0:
        return first
    starts, ends = np.asarray(spans, dtype=np.int64).T
    last = places[:, 1] - 1
    word = np.searchsorted(ends, last, side="right")
    inside = (places[:, 1] > places[:, 0]) & (word < len(spans))
    inside &= starts[np.minimum(word, len(spans) - 1)] <= last
    words, where = np.unique(word[inside], return_index=True)
    first[words] = np.flatnonzero(inside)[where]
    return first

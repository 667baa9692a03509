"""Sentences without labels, and as token ids with the weights by which those of a sentence become one vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.data.batch import Batch
from abridged.data.dataset import PARTS, Dataset
from abridged.data.padding import PaddedTexts, tokenized
from abridged.data.rows import Parts, Row, listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: How the last hidden states of a text's tokens become its vector, by sentence-transformers' names.
Pooling = Literal["mean", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
#: Columns that are taken for the sentences where nobody names one.
KNOWN_COLUMNS = ("sentence", "text")
#: Held out of what comes without a validation part, drawn at random: a file may be made of several, one after another.
VALIDATION_SHARE, MOST_HELD_OUT = 0.05, 2_000
#: Of each part that is learned from: a sentence is set against the others.
FEWEST = 2


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences, and how alike people found them."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class SentenceData(Dataset):
    """Three parts of sentences, none of which is twice among them, and pairs of some with the scores that people gave.

    Attributes:
        scored: pairs by part, where there are scores.
    """

    kind: ClassVar[str] = "sentences"
    holds: ClassVar[str] = "sentences"

    name: str
    train: list[str]
    validation: list[str]
    test: list[str]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: bool = True
    read: str = ""
    scored: Mapping[str, list[ScoredPair]] = field(default_factory=dict)
    task: str | None = None

    @classmethod
    def of(
        cls,
        name: str,
        parts: Mapping[str, Iterable[tuple[str, str]]],
        left_out: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> SentenceData:
        """Sentences of (place, sentence) by part; those that come twice are left out, in the training part first.

        Args:
            seed: of what is held out of the training part, where there is no validation part.

        Raises:
            AbridgedError: there are none.
        """
        gone = {why: list(places) for why, places in (left_out or {}).items()}
        seen: set[str] = set()
        kept: dict[str, list[str]] = {}
        for part in reversed(PARTS):
            kept[part] = []
            for place, sentence in parts.get(part, ()):
                if sentence in seen:
                    gone.setdefault("that repeat another", []).append(place)
                    continue
                seen.add(sentence)
                kept[part].append(sentence)
        train, validation, test = (kept[part] for part in PARTS)
        split = bool(validation or test)
        if not seen:
            raise AbridgedError(f"'{name}' holds no sentence")
        if not validation:
            order = np.random.default_rng(seed).permutation(len(train))
            held = min(max(FEWEST, round(VALIDATION_SHARE * len(train))), MOST_HELD_OUT, len(train))
            train, validation = [train[i] for i in sorted(order[held:])], [train[i] for i in sorted(order[:held])]
        return cls(name, train, validation, test or validation, gone, split)

    @property
    def words(self) -> str:
        return "\n".join(self.train)

    @property
    def scored_to_evaluate(self) -> list[ScoredPair]:
        """The pairs of `to_evaluate`."""
        parts = ("test",) if self.split else ("train", "validation")
        return [pair for part in parts for pair in self.scored.get(part, ())]

    def check_to_learn(self) -> None:
        if min(len(self.train), len(self.validation)) < FEWEST:
            count = len({*self.train, *self.validation})
            told = f"{count} different sentences" if count > 1 else "one sentence"
            raise AbridgedError(
                f"'{self.name}' has {told} to learn from: give {2 * FEWEST} or more, each is set against the others"
            )

    def _more(self) -> str:
        return ", pairs with scores" if self.scored else ""

    def as_sentences(self) -> SentenceData:
        return self


def sentences_of_lines(name: str, parts: Mapping[str, Sequence[str]]) -> SentenceData:
    """A sentence of each line that is not empty."""
    return SentenceData.of(
        name,
        {
            part: [(f"line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
            for part, lines in parts.items()
        },
    )


def sentences_of_rows(name: str, parts: Parts, columns: tuple[str, ...] | None) -> tuple[SentenceData, tuple[str, ...]]:
    """The texts of the columns that are named, or of the one that is known; and these columns.

    Raises:
        AbridgedError: none is named, and none is known; see `SentenceData.of`.
    """
    first = next(row for rows in parts.values() for row in rows)
    found = columns or sentence_columns(name, first)
    left_out: dict[str, list[str]] = {}

    def texts(rows: Sequence[Row]) -> Iterable[tuple[str, str]]:
        for row in rows:
            for column in found:
                text = row.text(column)
                if text:
                    yield row.place, text
                else:
                    left_out.setdefault(f"without {column}", []).append(row.place)

    read = {part: list(texts(rows)) for part, rows in parts.items()}
    return SentenceData.of(name, read, left_out), found


def sentence_columns(name: str, first: Row) -> tuple[str]:
    """The column of the sentences: one that is known, or the only one.

    Raises:
        AbridgedError: there is no telling.
    """
    known = next((column for column in KNOWN_COLUMNS if column in first), None)
    if known is None and len(first) == 1:
        known = next(iter(first))
    if known is None:
        raise AbridgedError(
            f"'{name}' has the columns {listed(list(map(str, first)))}: say which holds the sentences, as in "
            "--columns sentence"
        )
    return (known,)


def pooling_weights(lengths: Tensor, width: int, pooling: Pooling, skip: int = 0) -> Tensor:
    """(B, width) FP32: what each token's last hidden state counts in the vector of its text, 0 for padding.

    As sentence-transformers' Pooling has them (Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084, section 3; of
    weightedmean, Muennighoff 2022, arXiv:2202.08904).

    Args:
        lengths: (B,) tokens of each text.
        skip: tokens in front that do not count: of a prompt that is read and not pooled.
    """
    place = torch.arange(1, width + 1)
    return pooling_weights_at(place, (place <= lengths.unsqueeze(-1)) & (place > skip), pooling)


def pooling_weights_at(place: Tensor, counted: Tensor, pooling: Pooling) -> Tensor:
    """`pooling_weights` of tokens at `place` (…, width), from 1, those that are `counted` (B, width) bool."""
    if pooling in ("cls", "lasttoken"):
        most = torch.iinfo(torch.int64).max
        first, last = torch.where(counted, place, most).amin(-1, True), torch.where(counted, place, 0).amax(-1, True)
        return ((place == (first if pooling == "cls" else last)) & counted).float()
    found = counted * (place.float() if pooling == "weightedmean" else torch.ones_like(place, dtype=torch.float32))
    total = found.sum(-1, keepdim=True).clamp_min(1e-9)
    return found / (total.sqrt() if pooling == "mean_sqrt_len_tokens" else total)


@dataclass(frozen=True)
class TokenTexts(PaddedTexts):
    """Texts as token ids, cut to what a model reads of them; their labels say nothing."""

    pooling: Pooling
    skip: int  #: tokens in front that are not pooled
    cut: int  #: how many were longer than allowed

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        limit: int,
        pooling: Pooling,
        prompt: str = "",
        pool_prompt: bool = True,
    ) -> TokenTexts:
        """Tokenise `texts`, each behind the prompt; at most `limit` tokens of each are kept, special ones included."""
        given = [prompt + text for text in texts]
        whole, cut = tokenized(tokenizer, limit, given)
        skip = 0
        if prompt and not pool_prompt:  # what ends a text is not in front of it
            ends = len(tokenizer("a")["input_ids"]) > len(tokenizer("a", add_special_tokens=False)["input_ids"])
            skip = len(tokenizer(prompt, verbose=False)["input_ids"]) - ends
        return cls(
            ids=whole["ids"],
            types=whole["types"],
            labels=np.zeros(len(given), dtype=np.int64),
            pad=tokenizer.pad_token_id or 0,
            pooling=pooling,
            skip=skip,
            cut=cut,
        )

    def batch(self, index: Tensor) -> Batch:
        """The texts at `index`, padded to the longest among them, with how they are pooled."""
        found = super().batch(index)
        lengths = torch.tensor([len(self.ids[i]) for i in index.tolist()])
        return replace(found, pooling=pooling_weights(lengths, found.input_ids.shape[1], self.pooling, self.skip))

    def fingerprint(self) -> str:
        """A hash of all token ids, and how they are pooled."""
        return f"{super().fingerprint()}-{self.pooling}-{self.skip}"

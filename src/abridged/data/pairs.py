"""Pairs of texts, such as documents and their summaries: read from files, tokenised, padded and put in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from abridged.core.errors import AbridgedError
from abridged.core.text import read_text
from abridged.data.batch import Batch
from abridged.data.blocks import specials_around
from abridged.data.dataset import Dataset, announce
from abridged.data.examples import Order
from abridged.data.padding import digest_of, mask_of, rectangle
from abridged.data.rows import Parts, Row, is_rows, rows
from abridged.data.text import VALIDATION_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Columns that are taken for source and target where a person names none.
KNOWN_COLUMNS = (
    ("document", "summary"),
    ("article", "highlights"),
    ("body", "subject"),
    ("dialogue", "summary"),
    ("article", "summary"),
    ("text", "summary"),
    ("body", "title"),
    ("text", "title"),
    ("source", "target"),
)
REFERENCES = "references"  #: the column of further references, where there is one
HUB_PAIRS = {"cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0"), "xsum": ("EdinburghNLP/xsum", None)}


@dataclass(frozen=True)
class Pair:
    """A source, what is to be made of it, and further references that count as right."""

    source: str
    target: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairData(Dataset):
    """Three parts of one collection of pairs; what came without a validation part has its last twentieth held out."""

    kind: ClassVar[str] = "pairs"
    holds: ClassVar[str] = "pairs of texts"

    name: str
    columns: tuple[str, str]
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: bool = True
    read: str = ""

    @property
    def words(self) -> str:
        return "\n".join(f"{pair.source}\n{pair.target}" for pair in self.train)

    def _more(self) -> str:
        return f", {self.columns[0]} and {self.columns[1]}"

    def as_pairs(self) -> PairData:
        return self


def pairs_of(name: str, parts: Parts, columns: tuple[str, ...] | None = None) -> PairData:
    """The pairs that rows hold.

    Args:
        columns: the names of source and target; None = the first of `KNOWN_COLUMNS` that is there.

    Raises:
        AbridgedError: a column is missing, there are not two, or no row has both texts.
    """
    first = next(row for some in parts.values() for row in some)
    known = columns or known_columns(first)
    if known is None:
        raise AbridgedError(
            f"'{name}' has the columns {', '.join(map(str, first))}: say which are source and target, as in "
            "--columns document,summary"
        )
    if len(known) != 2:
        raise AbridgedError(f"an encoder-decoder learns from two columns, source and target, not from {len(known)}")
    both = (known[0], known[1])
    left_out: dict[str, list[str]] = {}
    kept = {split: _whole(some, both, left_out) for split, some in parts.items()}
    if not any(kept.values()):
        raise AbridgedError(f"no row of '{name}' has both a {both[0]} and a {both[1]}")
    came_split = bool(kept["validation"] or kept["test"])
    if not kept["validation"]:
        held = max(1, round(len(kept["train"]) * VALIDATION_SHARE))
        kept["train"], kept["validation"] = kept["train"][:-held], kept["train"][-held:]
    return PairData(
        name=name,
        columns=both,
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"] or kept["validation"],
        left_out=left_out,
        split=came_split,
    )


def read_documents(path: Path, column: str | None = None) -> list[str]:
    """The documents of a file: of rows those in `column` (or the first that is known), else all of it as one.

    Raises:
        AbridgedError: there is no such file or column, or it is not text.
    """
    if not path.is_file():
        raise AbridgedError(f"no such file: {path}")
    if not is_rows(path):
        announce(f"{path}: one document")
        return [read_text(path)]
    found = list(rows(path))
    if not found:
        raise AbridgedError(f"'{path}' has no rows")
    column = column or next((source for source, _ in KNOWN_COLUMNS if source in found[0]), None)
    if column is None or column not in found[0]:
        named = f"no column '{column}'" if column else "no column that is known for documents (name it with --column)"
        raise AbridgedError(f"'{path}' has {named}: it has {', '.join(map(str, found[0]))}")
    announce(f"{path}: {len(found):,} documents, {column}")
    return [row.text(column) for row in found]


def known_columns(row: Row) -> tuple[str, str] | None:
    """The columns of a row that are taken for source and target."""
    return next((pair for pair in KNOWN_COLUMNS if pair[0] in row and pair[1] in row), None)


def _whole(some: Sequence[Row], columns: tuple[str, str], left_out: dict[str, list[str]]) -> list[Pair]:
    """The pairs of rows that have both texts; the places of others go to `left_out`."""
    pairs = []
    for row in some:
        for column in columns:
            if column not in row:
                raise AbridgedError(f"{row.place} has no column '{column}': it has {', '.join(row)}")
        source, target = (row.text(column) for column in columns)
        more = row.get(REFERENCES)
        more = more if isinstance(more, list) else [more]
        if source and target:
            pairs.append(Pair(source, target, tuple(r.strip() for r in more if isinstance(r, str) and r.strip())))
        else:
            left_out.setdefault(f"without {columns[1] if source else columns[0]}", []).append(row.place)
    return pairs


@dataclass(frozen=True)
class Specials:
    """The special tokens that an encoder-decoder wants around its texts."""

    before: tuple[int, ...]  #: in front of a text
    after: tuple[int, ...]  #: behind it
    start: int  #: what the decoder reads first
    pad: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: Any) -> Specials:
        """Read off a tokenizer and the config of its model.

        Raises:
            AbridgedError: the config does not say what the decoder starts with, or what padding is.
        """
        for key in ("decoder_start_token_id", "pad_token_id"):
            if getattr(config, key, None) is None:
                raise AbridgedError(f"the model's config has no {key}, which an encoder-decoder needs")
        before, after = specials_around(tokenizer)
        return cls(tuple(before), tuple(after), config.decoder_start_token_id, config.pad_token_id)

    @property
    def count(self) -> int:
        """How many stand around a text."""
        return len(self.before) + len(self.after)

    def around(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens (n,) with their special ones."""
        return np.concatenate([self.before, tokens, self.after]).astype(np.int64)


def pad(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    index: torch.Tensor,
    specials: Specials,
    source_length: int | None = None,
) -> Batch:
    """One batch of token ids, special ones included, padded to the longest (or sources to `source_length`)."""

    labels = rectangle(targets, -100)
    inputs = rectangle([np.concatenate([[specials.start], target[:-1]]) for target in targets], specials.pad)
    source_ids = rectangle(sources, specials.pad, source_length)
    # The decoder needs no mask: padding comes last, where no token that counts can see it.
    return Batch.of(inputs, labels, index, source_ids=source_ids, source_mask=mask_of(sources, source_ids))


@dataclass(frozen=True)
class TokenPairs:
    """Pairs as token ids, cut to what the model's positions allow."""

    sources: list[np.ndarray]  #: special tokens included
    targets: list[np.ndarray]
    specials: Specials
    source_cut: int  #: how many sources were longer than allowed
    target_cut: int

    @classmethod
    def of(
        cls, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, specials: Specials, context: int, target: int
    ) -> TokenPairs:
        """Tokenise `pairs`; sources keep at most `context` tokens and targets `target`, special ones included.

        Raises:
            AbridgedError: there are none.
        """
        if not pairs:
            raise AbridgedError("there are no pairs to learn from: all that there are were held out for validation")

        def encode(texts: list[str], limit: int) -> tuple[list[np.ndarray], int]:
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            room = limit - specials.count
            cut = sum(len(i) > room for i in ids)
            return [specials.around(np.asarray(i[:room], dtype=np.int64)) for i in ids], cut

        sources, source_cut = encode([pair.source for pair in pairs], context)
        targets, target_cut = encode([pair.target for pair in pairs], target)
        return cls(sources, targets, specials, source_cut, target_cut)

    @property
    def context(self) -> int:
        """The longest target."""
        return max(map(len, self.targets))

    @property
    def tokens_in_example(self) -> float:
        return float(np.mean([len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]))

    @property
    def same_length(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, index: torch.Tensor) -> Batch:
        """The pairs at `index`, padded to the longest among them."""
        numbers = index.tolist()
        return pad([self.sources[i] for i in numbers], [self.targets[i] for i in numbers], index, self.specials)

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them: batches of about one length."""
        lengths = np.array([len(source) for source in self.sources])
        return Order(len(self), seed, lengths, batch_size)

    def fingerprint(self) -> str:
        """A hash of all token ids."""
        return digest_of(str(self.specials).encode(), (*self.sources, *self.targets))

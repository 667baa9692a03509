"""Pairs of texts, such as documents and their summaries: read from files, tokenised, padded and put in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.data.padding import digest_of, mask_of, rectangle
from abridged.data.rows import SUFFIXES, rows, rows_by_split
from abridged.data.text import VALIDATION_SHARE
from abridged.errors import AbridgedError

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
_HUB = {"cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0"), "xsum": ("EdinburghNLP/xsum", None)}


@dataclass(frozen=True)
class Pair:
    """A source, what is to be made of it, and further references that count as right."""

    source: str
    target: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairData:
    """Three parts of one collection of pairs; what came without a validation part has its last twentieth held out."""

    name: str
    columns: tuple[str, str]
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    dropped: int = 0  #: rows that were left out because source or target was empty
    split: bool = True  #: whether it came in parts

    @property
    def to_evaluate(self) -> list[Pair]:
        """What to evaluate a finished model on: the test part, or all of what has no parts."""
        return self.test if self.split else self.train + self.validation


def looks_like_pairs(data: str | Path, columns: tuple[str, str] | None) -> bool:
    """Whether `data` names pairs rather than a text: columns are given, or a file of rows has two that are known."""
    if columns is not None or str(data) in _HUB:
        return True
    path = Path(data).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    for file in files:
        if file.suffix in SUFFIXES:
            first = next(rows(file), None)
            return first is not None and _known(first) is not None
    return False


def load_pairs(data: str | Path, columns: tuple[str, str] | None = None) -> PairData:
    """Read pairs by name or path.

    Args:
        data: a .jsonl, .csv, .tsv or .parquet file, a folder of such files (train, validation and test by that word in
            their path), `xsum`, `cnn_dailymail`, or the name of a `datasets` dataset, its configuration after a colon.
        columns: the names of source and target; None = the first of `KNOWN_COLUMNS` that is there.

    Raises:
        AbridgedError: nothing is found under that name, a column is missing, or no row has both texts.
    """
    name, path = str(data), Path(data).expanduser()
    here = path.exists() or path.suffix in SUFFIXES or name.startswith((".", "/", "~"))
    parts = rows_by_split(path) if here else _from_datasets(name)
    first = next((some[0] for some in parts.values() if some), None)
    if first is None:
        raise AbridgedError(f"'{name}' has no rows")
    columns = columns or _known(first)
    if columns is None:
        raise AbridgedError(
            f"'{name}' has the columns {', '.join(map(str, first))}: say which are source and target, as in "
            "--columns document,summary"
        )
    pairs = {split: [_pair(row, columns, name) for row in some] for split, some in parts.items()}
    kept = {split: [p for p in some if p.source and p.target] for split, some in pairs.items()}
    dropped = sum(map(len, pairs.values())) - sum(map(len, kept.values()))
    if not any(kept.values()):
        raise AbridgedError(f"no row of '{name}' has both a {columns[0]} and a {columns[1]}")
    came_split = bool(kept["validation"] or kept["test"])
    if not kept["validation"]:
        held = max(1, round(len(kept["train"]) * VALIDATION_SHARE))
        kept["train"], kept["validation"] = kept["train"][:-held], kept["train"][-held:]
    return PairData(
        name=name,
        columns=columns,
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"] or kept["validation"],
        dropped=dropped,
        split=came_split,
    )


def read_documents(path: Path, column: str | None = None) -> list[str]:
    """The documents of a file: of rows those in `column` (or the first that is known), else all of it as one.

    Raises:
        AbridgedError: there is no such file or column, or it is not text.
    """
    if not path.is_file():
        raise AbridgedError(f"no such file: {path}")
    if path.suffix not in SUFFIXES:
        try:
            return [path.read_text(encoding="utf-8")]
        except (UnicodeDecodeError, OSError) as error:
            raise AbridgedError(f"cannot read {path}: {error}") from error
    found = list(rows(path))
    if not found:
        raise AbridgedError(f"'{path}' has no rows")
    column = column or next((source for source, _ in KNOWN_COLUMNS if source in found[0]), None)
    if column not in found[0]:
        named = f"no column '{column}'" if column else "no column that is known for documents (name it with --column)"
        raise AbridgedError(f"'{path}' has {named}: it has {', '.join(map(str, found[0]))}")
    return [text if isinstance(text := row.get(column), str) else "" for row in found]


def _known(row: dict[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in KNOWN_COLUMNS if pair[0] in row and pair[1] in row), None)


def _pair(row: dict[str, Any], columns: tuple[str, str], name: str) -> Pair:
    for column in columns:
        if column not in row:
            raise AbridgedError(f"'{name}' has no column '{column}': it has {', '.join(map(str, row))}")
    texts = [row[column] for column in columns]
    source, target = (text.strip() if isinstance(text, str) else "" for text in texts)
    more = row.get(REFERENCES) or ()
    return Pair(source, target, tuple(r.strip() for r in more if isinstance(r, str) and r.strip()))


def _from_datasets(name: str) -> dict[str, list[dict[str, Any]]]:
    repository, _, configuration = name.partition(":")
    try:
        from datasets import load_dataset

        splits = load_dataset(*_HUB.get(name, (repository, configuration or None)))
        return {split: list(splits[split]) if split in splits else [] for split in ("train", "validation", "test")}
    except Exception as error:  # datasets raises a dozen kinds; to a person they all mean: not found or not reachable
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AbridgedError(
            f"no pairs called '{name}': it is no file or folder, and datasets could not load it ({first})"
        ) from error


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
        text = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer("a")["input_ids"]
        place = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
        before, after = whole[:place], whole[place + len(text) :]
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
    return Batch(inputs, labels, index, source_ids=source_ids, source_mask=mask_of(sources, source_ids))


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

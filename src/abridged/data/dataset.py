"""What a person's data are once they have been opened: a text, pairs, labelled texts, questions, videos, or rows."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from abridged.core.errors import AbridgedError
from abridged.core.text import printable
from abridged.data.rows import listed

if TYPE_CHECKING:
    from abridged.data.labelled import LabelledData
    from abridged.data.pairs import PairData
    from abridged.data.sentences import SentenceData
    from abridged.data.squad import QuestionData
    from abridged.data.tagged import TaggedData
    from abridged.data.text import TextData
    from abridged.data.video.clips import VideoData

#: Names of the parts that every collection has.
PARTS = ("train", "validation", "test")


def announce(data: str) -> None:
    """Say on standard error how data were understood, as every verb that reads some does."""
    print(f"data: {printable(data)}", file=sys.stderr, flush=True)


class Dataset:
    """Three parts of one collection, whatever is in it. `as_…` is what a model makes of it that needs that kind.

    Attributes:
        kind: `text`, `pairs`, `labels`, `tags`, `questions`, `videos`, or `rows`: columns that are pairs, labelled
            texts or a text, depending on who reads them.
        name: as the person called it.
        task: of GLUE, or `squad`, where it is one of theirs.
    """

    kind: ClassVar[str]
    holds: ClassVar[str]  #: the kind in words
    name: str
    task: str | None = None
    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]
    split: bool = True  #: whether it came in parts
    left_out: Mapping[str, Sequence[str]] = MappingProxyType({})  #: places of rows without this or that
    read: str = ""  #: how it was read, as `describe` says it: from which files, without which columns

    @property
    def dropped(self) -> int:
        """How many rows were left out."""
        return sum(map(len, self.left_out.values()))

    @property
    def has_test(self) -> bool:
        """Whether the test part is another than the validation part."""
        return self.test is not self.validation

    @property
    def to_evaluate(self) -> Any:
        """What to evaluate a finished model on: the test part, or all of what came without parts."""
        return self.test if self.split else self.train + self.validation  # type: ignore[operator]

    @property
    def words(self) -> str:
        """All of the training part as one text, for what learns words from it."""
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all three parts."""
        digest = hashlib.sha256(self.kind.encode())
        for part in PARTS:
            found = getattr(self, part)
            for one in (found,) if isinstance(found, str) else found:
                digest.update(one.encode("utf-8", "surrogatepass") if isinstance(one, str) else repr(one).encode())
            digest.update(b"\0")
        return digest.hexdigest()[:16]

    def describe(self, measured: bool = False) -> str:
        """How the data were understood, in one line: what they hold, how much of it, what was left out and why.

        Args:
            measured: whether they are only to be measured on.
        """
        if measured:
            counts = [f"{len(self.to_evaluate):,} to measure"]
        else:
            counts = [f"{len(self.train):,} to train on", f"{len(self.validation):,} to choose by"]
            counts.append(f"{len(self.test):,} to test" if self.has_test else "tested on the same")
        left_out = [f"; {len(some):,} rows {why} left out ({self._first(some)})" for why, some in self.left_out.items()]
        return f"{self.name}: {self.holds}{self._more()}; {', '.join(counts)}{''.join(left_out)}{self.read}"

    def _first(self, places: Sequence[str]) -> str:
        return listed([place.removesuffix(f" of {self.name}") for place in places], 3)

    def announce(self, measured: bool = False) -> None:
        """Say how the data were understood."""
        announce(self.describe(measured))

    def check_to_learn(self) -> None:
        """Raise AbridgedError where a model could only be measured on them."""

    def _more(self) -> str:
        return ""

    def as_text(self) -> TextData:
        """As one text. Raises AbridgedError where it is none, as do the others."""
        raise self._is_no("a text is wanted: give a .txt file, or rows with a column `text`")

    def as_pairs(self) -> PairData:
        """As pairs of a source and a target."""
        raise self._is_no("pairs are wanted: give rows with two columns of texts")

    def as_labelled(self) -> LabelledData:
        """As texts with labels or scores."""
        raise self._is_no("labelled texts are wanted: give rows (.tsv, .csv, .jsonl, .parquet) of texts and labels")

    def as_tagged(self) -> TaggedData:
        """As texts with a tag for each word."""
        raise self._is_no(
            "words with tags are wanted: give a file of columns (.conll, or another name and --task tokens), or rows "
            "with lists of tokens and of tags"
        )

    def as_questions(self) -> QuestionData:
        """As questions whose answers are spans of paragraphs."""
        raise self._is_no("questions are wanted: give a folder with SQuAD's train-v1.1.json and dev-v1.1.json")

    def as_sentences(self) -> SentenceData:
        """As sentences, whatever else is known of them."""
        raise self._is_no("sentences are wanted: give a .txt file with one a line, or rows with a column of them")

    def as_videos(self) -> VideoData:
        """As videos with captions or questions."""
        raise self._is_no("videos are wanted: give rows with columns video and caption, or a folder of videos")

    def _is_no(self, wanted: str) -> AbridgedError:
        return AbridgedError(f"'{self.name}' holds {self.holds}, and {wanted}")


def hub_splits(repository: str, configuration: str | None, complaint: str) -> dict[str, Iterable[Any]]:
    """The parts of a `datasets` dataset.

    Raises:
        AbridgedError: it could not be loaded: `complaint`, and the reason.
    """
    try:
        from datasets import load_dataset

        splits: dict[str, Iterable[Any]] = load_dataset(repository, configuration)
    except Exception as error:  # datasets raises a dozen kinds; to a person they all mean: not found or not reachable
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AbridgedError(f"{complaint} ({reason})") from error
    return splits

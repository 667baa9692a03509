"""Opens data once, by what they are, before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from abridged.core.errors import AbridgedError
from abridged.data.dataset import PARTS, Dataset, hub_splits
from abridged.data.labelled import GLUE, OWN, LabelledData, load_glue, load_scored, own_labels
from abridged.data.pairs import HUB_PAIRS, PairData, known_columns, pairs_of
from abridged.data.rows import (
    SUFFIXES,
    Parts,
    Row,
    account,
    files_by_split,
    files_of,
    is_rows,
    listed,
    rows,
    rows_by_split,
    rows_of_hub,
)
from abridged.data.sentences import SentenceData, sentences_of_rows
from abridged.data.squad import SQUAD, TRAIN, load_questions
from abridged.data.tag_files import TOKENS, holds_conll, holds_tags, load_tagged, tagged_of_hub, tagged_of_rows
from abridged.data.tagged import TaggedData
from abridged.data.text import BUILT_IN, MLM, TEXT_SUFFIXES, TextData, load_text, not_found, text_of_rows
from abridged.data.video.clips import VideoData, holds_videos, of_folder, of_rows
from abridged.data.video.layouts import published


def open_data(spec: str | Path, columns: tuple[str, ...] | None = None, task: str | None = None) -> Dataset:
    """Find data by name or path, and read as much of them as says what they are.

    Args:
        spec: a text: `wikitext-2` (bundled), `wikitext-103` or `ptb` (from a hub), a .txt, .txt.xz or .tokens file, or
            a folder of such files; rows: a .jsonl, .csv, .tsv or .parquet file, a folder of them (train, validation and
            test by that word in their path), `xsum`, `cnn_dailymail`, or the name of a `datasets` dataset, its
            configuration after a colon; a folder with the files of SQuAD or of a GLUE task, or `glue` for the hub's;
            words with tags: a file of columns (.conll, .bio, .iob), a folder of such, rows with two lists; videos: rows
            that name a video file, a folder of videos, or annotations of MSR-VTT, MSVD, DiDeMo or
            QVHighlights with the videos below their folder.
        columns: of rows: (source, target) of pairs, (text, label) or (text, second text, label) of labelled texts,
            (video, caption) or (video, question, answer); those of sentences.
        task: one of GLUE's, `squad`, or for one's own data `labels` (texts and labels), `tokens` (words and tags) or
            `mlm` (a text, tokens of which are masked). The files of a published task are in a folder; of one that is
            of scores, such as `stsb`, `spec` may be one file of rows.

    Raises:
        AbridgedError: nothing is found under that name, it cannot be read, or it has no such columns.
    """
    name, path = str(spec), Path(spec).expanduser()
    if task == SQUAD or (task is None and (path / TRAIN).is_file()):
        return load_questions(path)
    if task == TOKENS:
        return load_tagged(spec, columns)
    if task == MLM:
        if columns is not None:
            raise AbridgedError("tokens are masked in a text, which has no columns: rows have it in a column `text`")
        return load_text(spec)
    if task not in (None, OWN):
        assert task is not None
        if task in GLUE and GLUE[task].labels is None and path.is_file():
            return load_scored(path, task, columns)
        return load_glue(spec, task)
    asked = columns is not None or task is not None
    if name in BUILT_IN:
        if asked:
            raise AbridgedError(f"'{name}' is a text, which has no columns")
        return load_text(spec)
    if path.exists() or is_rows(path) or path.suffix in TEXT_SUFFIXES or name.startswith((".", "/", "~")):
        if not asked and (videos := published(path)) is not None:
            return videos
        if holds_conll(path):
            return load_tagged(spec, columns)
        texts = not is_rows(path) if path.is_file() else not any(p.suffix.lower() in SUFFIXES for p in path.rglob("*"))
        if not asked and path.exists() and texts:
            return of_folder(path) or load_text(spec)
        if asked and path.is_file() and not is_rows(path):
            raise AbridgedError(f"'{name}' is a text, which has no columns: give {', '.join(SUFFIXES)}")
        first = next((row for some in files_by_split(path).values() for file in some for row in rows(file)), None)
        data = RowData.of(name, first, columns, task, path=path)
        if not asked and holds_tags(data.first):
            return load_tagged(spec)
        return data.as_videos() if task is None and holds_videos(data.first, columns) else data
    repository, _, configuration = name.partition(":")
    complaint = not_found("pairs" if columns is not None or name in HUB_PAIRS else "text", name)
    splits = hub_splits(*HUB_PAIRS.get(name, (repository, configuration or None)), complaint)
    parts = {split: rows_of_hub(split, splits.get(split, ())) for split in PARTS}
    if not asked and any(holds_tags(row) for some in parts.values() for row in some[:1]):
        return tagged_of_hub(name, splits)
    return RowData.of(name, next((row for some in parts.values() for row in some), None), columns, task, given=parts)


@dataclass(frozen=True)
class RowData(Dataset):
    """Rows of named columns, which are read when it is known as what; columns may be asked for."""

    kind: ClassVar[str] = "rows"
    holds: ClassVar[str] = "rows"

    name: str
    first: Row
    columns: tuple[str, ...] | None = None
    task: str | None = None
    path: Path | None = None  #: of a file or a folder
    given: Parts | None = field(default=None, repr=False)  #: what a hub gave instead

    @classmethod
    def of(
        cls,
        name: str,
        first: Row | None,
        columns: tuple[str, ...] | None,
        task: str | None,
        path: Path | None = None,
        given: Parts | None = None,
    ) -> RowData:
        """Rows whose `first` says which columns there are.

        Raises:
            AbridgedError: there is none, or it lacks one of `columns`.
        """
        if first is None:
            raise AbridgedError(f"'{name}' has no rows")
        for column in columns or ():
            if column not in first:
                raise AbridgedError(f"'{name}' has no column '{column}': it has {', '.join(map(str, first))}")
        return cls(name, first, columns, task, path, given)

    train = property(lambda self: self._parts["train"])
    validation = property(lambda self: self._parts["validation"])
    test = property(lambda self: self._parts["test"])

    @property
    def has_pairs(self) -> bool:
        """Whether there are a source and a target: two columns that were asked for, or that are known as such."""
        return self.columns is not None or known_columns(self.first) is not None

    @property
    def words(self) -> str:
        return (self.as_pairs() if self.has_pairs else self.as_text()).words

    @cached_property
    def _parts(self) -> Parts:
        return rows_by_split(self.path) if self.path is not None else self.given or {}

    def as_text(self) -> TextData:
        if self.columns is not None or self.task is not None:
            raise self._is_no("a text is wanted: leave --columns and --task out")
        return self._text

    def as_pairs(self) -> PairData:
        return self._pairs

    def as_labelled(self) -> LabelledData:
        return self._labelled

    def as_tagged(self) -> TaggedData:
        return tagged_of_rows(self.name, self._parts, self.columns)

    def as_sentences(self) -> SentenceData:
        return self._sentences

    def as_videos(self) -> VideoData:
        return self._videos

    @cached_property
    def _text(self) -> TextData:
        return load_text(self.name) if self.path is not None else text_of_rows(self.name, self._parts)

    @cached_property
    def _pairs(self) -> PairData:
        found = pairs_of(self.name, self._parts, self.columns)
        return replace(found, read=self._account(found.columns))

    @cached_property
    def _labelled(self) -> LabelledData:
        found = own_labels(self.name, self._parts, self.columns)
        return replace(found, read=self._account(found.columns))

    @cached_property
    def _sentences(self) -> SentenceData:
        found, columns = sentences_of_rows(self.name, self._parts, self.columns)
        return replace(found, read=self._account(columns))

    @cached_property
    def _videos(self) -> VideoData:
        folder = Path() if self.path is None else self.path if self.path.is_dir() else self.path.parent
        found, columns = of_rows(self.name, self._parts, folder, self.columns)
        return replace(found, read=self._account(columns))

    def _account(self, columns: Sequence[str]) -> str:
        """How rows were read of which some columns count."""
        unread = [str(column) or "one without a name" for column in self.first if column not in columns]
        told = f"; not read: {listed(unread)}" if unread else ""
        return told + account(self.name, self._parts, files_of(self.path) if self.path is not None else ())

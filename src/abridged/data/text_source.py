"""Texts of any number, of which a few are in memory at once: of files, of folders of them, of a `datasets` name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.text import open_text
from abridged.data.dataset import announce, hub_splits
from abridged.data.rows import SUFFIXES, Row, files_of, is_rows, listed, parquet_rows, parquet_size, rows
from abridged.data.sentences import sentence_columns
from abridged.data.text import not_found

#: The column that the lines of a .txt file are in.
LINE = "text"
#: Bytes from the beginning and from the end of a file that tell it from another of its size.
_MARKED = 1 << 16


@dataclass(frozen=True)
class Part:
    """A file, or a part of a `datasets` dataset.

    Attributes:
        name: how people are told of it.
        count: its rows.
        column: that of its texts.
        path: of a file.
        hub: (repository, configuration, part) of a dataset.
        mark: what tells its content from another's, found without reading all of it.
    """

    name: str
    count: int
    column: str
    path: Path | None = None
    hub: tuple[str, str | None, str] | None = None
    mark: str = ""

    def rows(self, start: int, columns: Sequence[str]) -> Iterator[Row]:
        """Its rows from the one of number `start`, from 0; of more columns than these where it is no matter."""
        if self.hub is not None:
            repository, configuration, split = self.hub
            found: Any = hub_splits(repository, configuration, f"{self.name} is gone")[split]
            found = found.select(range(start, self.count)).select_columns(list(columns))
            return (Row(row, self.name, number) for number, row in enumerate(found, start + 1))
        assert self.path is not None
        if self.path.suffix.lower() == ".parquet":
            return parquet_rows(self.path, start, columns)
        return islice(rows(self.path) if is_rows(self.path) else _lines(self.path), start, None)


@dataclass(frozen=True)
class TextSource:
    """Rows of texts one after another, numbered through from 0; it can be sent to another process.

    Attributes:
        name: as it was asked for.
        parts: the files, or parts of a dataset, in their order.
        kept: columns that are kept beside the text, and whether one holds whole numbers.
    """

    name: str
    parts: tuple[Part, ...]
    kept: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def open(
        cls, data: str | Path, column: str | None = None, kept: Sequence[str] = (), split: str | None = None
    ) -> TextSource:
        """What `data` names, which is gone through once here but for Parquet and datasets, to count it.

        Args:
            data: a file of rows (.jsonl, .csv, .tsv, .parquet) or a .txt, a folder of such files (of rows, where there
                are any), or the name of a `datasets` dataset, its configuration after a colon.
            column: of the texts; the one that is known, or the only one, where nobody says.
            kept: columns that are kept, too; the lines of a .txt file are its column `text`.
            split: the one part of a dataset to take; None: all of them.

        Raises:
            AbridgedError: nothing is there, it cannot be read, has no text, or no such column or part.
        """
        path, name = Path(data).expanduser(), str(data)
        if path.exists() or is_rows(path) or path.suffix == ".txt" or name.startswith((".", "/", "~")):
            if split is not None:
                raise AbridgedError(f"{data} is here, and only a dataset by name has a part called '{split}'")
            opened = [_of_file(file, column, kept) for file in _files(path)]
        else:
            opened = _of_hub(name, column, kept, split)
        parts = tuple(part for part, _ in opened if part.count)
        if not parts:
            raise AbridgedError(f"'{data}' holds no text")
        first = next(row for part, row in opened if part.count and row is not None)
        numbers = tuple((one, isinstance(first[one], int) and not isinstance(first[one], bool)) for one in kept)
        source = cls(name, parts, numbers)
        told = sorted({part.column for part in parts})
        announce(f"{data}: {len(source):,} texts, {listed(told)}" + (f", of {len(parts):,} files" if parts[1:] else ""))
        return source

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def marks(self) -> list[list[Any]]:
        """What tells this data from others, as JSON has it."""
        return [[part.name, part.count, part.column, part.mark] for part in self.parts]


class Cursor:
    """Reads a source from any row on; who goes forward reads nothing twice."""

    def __init__(self, source: TextSource) -> None:
        self.source, self._place = source, 0
        self._rows: Iterator[tuple[Row, str]] = iter(())

    def take(self, start: int, count: int) -> Iterator[tuple[Row, str]]:
        """`count` rows from number `start` on, each with its text, without spaces around it; "" where there is none.

        Raises:
            AbridgedError: there are fewer by now, or a value is no text.
        """
        if start < self._place or not self._place:
            self._rows, self._place = self._from(start), start
        for _ in islice(self._rows, start - self._place):
            pass
        self._place = start
        for row, column in islice(self._rows, count):
            self._place += 1
            yield row, row.text(column)
        if self._place < start + count:
            raise AbridgedError(f"{self.source.name} changed while it was read: there are fewer texts in it")

    def _from(self, start: int) -> Iterator[tuple[Row, str]]:
        before = 0
        for part in self.source.parts:
            if start < before + part.count:
                columns = list(dict.fromkeys([part.column, *(name for name, _ in self.source.kept)]))
                within = max(0, start - before)
                for row in islice(part.rows(within, columns), part.count - within):
                    yield row, part.column
            before += part.count


def _files(path: Path) -> list[Path]:
    """A file, or a folder's files of rows, or, where there are none, its .txt files."""
    if path.is_dir() and not any(one.suffix.lower() in SUFFIXES for one in path.rglob("*")):
        found = sorted(one for one in path.rglob("*.txt") if one.is_file())
        if not found:
            raise AbridgedError(f"the folder {path} holds no {', '.join(SUFFIXES)} or .txt file")
        return found
    return files_of(path)


def _of_file(path: Path, column: str | None, kept: Sequence[str]) -> tuple[Part, Row | None]:
    """A file, and its first row."""
    if path.suffix.lower() == ".parquet":
        count, first = parquet_size(path), next(rows(path), None)
    else:
        count, first = 0, None
        for row in rows(path) if is_rows(path) else _lines(path):
            first, count = first or row, count + 1
    found = LINE if first is None else _column(str(path), first, column, kept)
    return Part(str(path), count, found, path=path, mark=_mark(path)), first


def _of_hub(name: str, column: str | None, kept: Sequence[str], split: str | None) -> list[tuple[Part, Row | None]]:
    """The parts of a dataset, which lie on this machine's disk, each with its first row."""
    repository, _, configuration = name.partition(":")
    splits: dict[str, Any] = hub_splits(repository, configuration or None, not_found("dataset", name))
    if split is not None and split not in splits:
        raise AbridgedError(f"'{name}' has no part '{split}': it has {listed(list(splits))}")
    opened = []
    for part, data in splits.items() if split is None else [(split, splits[split])]:
        told, first = f"{name} ({part})", Row(data[0], f"{name} ({part})", 1) if len(data) else None
        found = LINE if first is None else _column(told, first, column, kept)
        mark = str(getattr(data, "_fingerprint", ""))
        where = (repository, configuration or None, part)
        opened.append((Part(told, len(data), found, hub=where, mark=mark), first))
    return opened


def _column(name: str, first: Row, asked: str | None, kept: Sequence[str]) -> str:
    for one in [*([asked] if asked is not None else []), *kept]:
        if one not in first:
            raise AbridgedError(f"'{name}' has no column '{one}': it has {listed(list(map(str, first)))}")
    return asked or sentence_columns(name, first)[0]


def _lines(path: Path) -> Iterator[Row]:
    """The lines of a text file as rows of one column."""
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                yield Row({LINE: line.strip()}, str(path), number, 1)
    except OSError as error:
        raise AbridgedError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AbridgedError(f"cannot read {path}: not UTF-8 text ({error.reason})") from None


def _mark(path: Path) -> str:
    """A hash of a file's size, its beginning and its end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size} ".encode() + file.read(_MARKED))
        file.seek(max(0, size - _MARKED))
        digest.update(file.read(_MARKED))
    return digest.hexdigest()[:16]

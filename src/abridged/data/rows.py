"""Files of rows with named columns: .jsonl, .json, .csv, .tsv, .parquet, and folders of them; read strictly."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.text import open_text, parse_json, read_text

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")  #: of what is read of a folder
SPLITS = {"train": {"train"}, "validation": {"validation", "valid", "dev", "testa"}, "test": {"test", "testb"}}
_BATCH = 1024  #: rows of a .parquet file that are in memory at once
_EXACT = 2**53  #: from here on a float says less than its digits do


class Row(dict[str, Any]):
    """Values by column, and where they stand.

    Attributes:
        source: the file, or the part of a hub's data.
        number: of the line in a file of lines, else of the row; from 1.
        lines: how many a quoted row of a .csv reaches over.
    """

    __slots__ = ("lines", "number", "source")

    def __init__(self, values: dict[str, Any], source: str, number: int, lines: int = 0) -> None:
        super().__init__(values)
        self.source, self.number, self.lines = source, number, lines

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        return f"{'line' if self.lines else 'row'} {self.number} of {self.source}"

    def text(self, column: str) -> str:
        """A cell without spaces around it; "" where it is missing, which 0 and `false` are not.

        Raises:
            AbridgedError: it is neither a text nor a number.
        """
        value = self.get(column)
        if value is None or (isinstance(value, float) and value != value):
            return ""
        if not isinstance(value, str | Number):
            raise AbridgedError(
                f"{self.place} has a {type(value).__name__}, which is no text, in its column '{column}'"
            )
        if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
            value = int(value)  # a column of whole numbers in which one is missing is read as floats
        return str(value).strip()


Parts = dict[str, list[Row]]  #: by the name of the part


def is_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    return path.suffix.lower() in _READERS


def files_by_split(where: Path) -> dict[str, list[Path]]:
    """A file, under "train", or a folder's files of rows: train, validation and test by that word in a path.

    Raises:
        AbridgedError: there is no such file or folder, or no file of rows in it.
    """
    return by_split(where, files_of(where))


def files_of(where: Path) -> list[Path]:
    """A file, or a folder's files of rows. Raises AbridgedError as `files_by_split` does."""
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise AbridgedError(f"no such file or folder: {where}")
    paths = sorted(p for p in where.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not paths:
        raise AbridgedError(f"the folder {where} holds no {', '.join(SUFFIXES)} file")
    return paths


def by_split(where: Path, paths: list[Path]) -> dict[str, list[Path]]:
    """The files of a folder by the part that a word in their path names; all are "train" where none is named so.

    Raises:
        AbridgedError: a path names two parts, in both of which its rows would be.
    """
    of: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in paths:
        words = words_of_path(path.relative_to(where))
        named = [split for split, names in SPLITS.items() if words & names]
        if len(named) > 1:
            raise AbridgedError(f"the path of {path} names two parts, {' and '.join(named)}: leave one in it")
        for split in named:
            of[split].append(path)
    return of if of["train"] else {"train": paths, "validation": [], "test": []}


def words_of_path(path: Path) -> set[str]:
    """The words in a path: a split's name among them says what a file is for."""
    return set(re.split("[^a-z]+", str(path).lower()))


def rows_by_split(where: Path) -> Parts:
    """The rows of `files_by_split`.

    Raises:
        AbridgedError: as it does, or a file cannot be read.
    """
    return {split: [row for path in some for row in rows(path)] for split, some in files_by_split(where).items()}


def account(name: str, parts: Parts, files: Iterable[Path] = ()) -> str:
    """How rows were read, to be said behind what they are: from which of a folder's `files`, and if from many lines."""
    every = [row for some in parts.values() for row in some]
    told = account_of_files(name, {**{str(path): 0 for path in files}, **Counter(row.source for row in every)}, "rows")
    if long := [row for row in every if row.lines > 1]:
        longest = max(long, key=lambda row: row.lines)
        told += f"; {len(long):,} rows of several lines, up to {longest.lines:,} from {longest.place} on"
    return told


def account_of_files(name: str, read: Mapping[str, int], what: str) -> str:
    """The files of a folder, with how many rows or characters each gave, and those that were passed over."""
    short = {path.removeprefix(name).lstrip("/"): count for path, count in read.items()}
    given = [f"{path} {count:,}" for path, count in short.items() if count]
    if len(short) < 2:
        return ""
    passed = [path for path, count in short.items() if not count]
    return f"; {what} of {listed(given)}" + (f"; nothing of {listed(passed)}" if passed else "")


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names with commas between them, the first ones."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def rows_of_hub(name: str, some: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows that came from a hub; `name` is that of their part."""
    return [Row(row, name, number) for number, row in enumerate(some, 1)]


def rows(path: Path) -> Iterator[Row]:
    """The rows of one file, as they come.

    A .tsv quotes nothing; a .csv quotes by RFC 4180, and must do so rightly. Each row has the cells that the first line
    names. A column without a name is called "".

    Raises:
        AbridgedError: it cannot be read, a line of it is no row, or two columns have one name.
    """
    if not is_rows(path):
        raise AbridgedError(f"cannot read rows from {path}: its name ends in none of {', '.join(_READERS)}")
    try:
        yield from _READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise AbridgedError(f"cannot read rows from {path}: not UTF-8 text ({error.reason})") from error
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise AbridgedError(f"cannot read rows from {path}: {str(error).partition(chr(10))[0]}") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield Row(_object(line, f"line {number}"), str(path), number, 1)


def _json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object a line, which many write under this name."""
    text = read_text(path)
    if text.lstrip()[:1] != "[":
        yield from _json_lines(path)
        return
    for number, value in enumerate(parse_json(text), 1):
        yield Row(_named(value, f"row {number}"), str(path), number)


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        return _named(parse_json(text), where)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _named(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the module's own limit
    with open_text(path, newline="") as lines:
        yield from _table(path, _quoted(csv.reader(map(_without_nul, lines), strict=True)))


def _without_nul(line: str) -> str:
    if "\0" in line:  # Python's csv refuses it up to 3.10, and not from 3.11 on
        raise csv.Error("it holds a NUL")
    return line


def _quoted(reader: Any) -> Iterator[tuple[int, int, list[str]]]:
    end = 0
    try:
        for cells in reader:
            yield end + 1, reader.line_num - end, cells
            end = reader.line_num
    except csv.Error as error:
        raise ValueError(f"the row that begins in line {end + 1}: {error}") from None


def _tsv(path: Path) -> Iterator[Row]:
    yield from _table(path, ((number, 1, cells) for number, cells in tab_separated(path)))


def tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each line that is not empty, and its cells as they stand: quotation marks quote nothing."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            if line != "\n":
                yield number, line.removesuffix("\n").split("\t")


def _table(path: Path, lines: Iterator[tuple[int, int, list[str]]]) -> Iterator[Row]:
    names: list[str] | None = None
    for number, count, cells in lines:
        if names is None:
            names = unique([name.strip() for name in cells]) if cells else None
        elif cells and len(cells) != len(names):
            raise ValueError(f"line {number} has {len(cells)} cells, and the first line names {len(names)} columns")
        elif cells:
            yield Row(dict(zip(names, cells, strict=True)), str(path), number, count)


def unique(names: list[str]) -> list[str]:
    """The names of columns; ValueError where two have the same."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are called '{twice}'")
    return names


def parquet_size(path: Path) -> int:
    """The rows of a .parquet file. Raises AbridgedError where it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise AbridgedError(f"cannot read rows from {path}: {str(error).partition(chr(10))[0]}") from error


def parquet_rows(path: Path, start: int, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a .parquet file from number `start` on, from 0, of some columns; a few are in memory at once.

    Raises:
        AbridgedError: it cannot be read.
    """
    try:
        yield from _parquet(path, start, columns)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise AbridgedError(f"cannot read rows from {path}: {str(error).partition(chr(10))[0]}") from error


def _parquet(path: Path, start: int = 0, columns: Sequence[str] | None = None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            unique(file.schema_arrow.names)
            number, groups = 0, list(range(file.num_row_groups))
            while groups and number + file.metadata.row_group(groups[0]).num_rows <= start:
                number += file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=None if columns is None else [*columns]):
                skipped = min(max(0, start - number), len(batch))
                number += skipped
                for values in batch.slice(skipped).to_pylist():
                    number += 1
                    yield Row(values, str(path), number)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}

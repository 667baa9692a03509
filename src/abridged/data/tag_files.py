"""Reads words and tags: files of columns, as CoNLL has them, rows with two lists, and `datasets`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of, parse_json, read_text
from abridged.data.dataset import PARTS, hub_splits
from abridged.data.rows import SUFFIXES, Parts, Row, account_of_files, by_split, listed, rows, rows_of_hub
from abridged.data.tagged import Tagged, TaggedData
from abridged.data.text import not_found

#: The name of the task, where a file's own does not say that its lines are words and tags.
TOKENS = "tokens"
#: Of files that hold nothing else.
CONLL_SUFFIXES = (".conll", ".conllu", ".bio", ".iob", ".iob2")
#: Of files that are read as columns where a person says that they hold tags; CoNLL-2003's are named by their part.
_COLUMN_SUFFIXES = (*CONLL_SUFFIXES, ".txt", ".tsv", ".train", ".dev", ".test", ".testa", ".testb")
_ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
#: Columns of rows that are taken for words and for their tags where nobody names any.
KNOWN_WORDS = ("tokens", "words")
KNOWN_TAGS = ("ner_tags", "tags", "labels", "ner", "pos_tags", "upos", "chunk_tags")
DOCUMENT = "-DOCSTART-"  #: the first word of a line that parts documents


def load_tagged(spec: str | Path, columns: tuple[str, ...] | None = None) -> TaggedData:
    """Read words and tags by name or path.

    A file of columns has a word in each line, and an empty line behind each text; rows have two lists, or two texts
    with spaces between the words; the features of a `datasets` dataset name its tags.

    Args:
        columns: of words and tags: names of rows' columns, or numbers of a file's, from 0; None: those that are known,
            and of a file the first and the last.

    Raises:
        AbridgedError: nothing is found under that name, it cannot be read, or it has no such columns.
    """
    name, path = str(spec), Path(spec).expanduser()
    if columns is not None and len(columns) != 2:
        raise AbridgedError("name two columns, of words and of tags")
    if path.is_file() and path.suffix.lower() not in _ROW_SUFFIXES:
        return _of_columns(name, {"train": [path]}, columns)
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _COLUMN_SUFFIXES)
        if paths:
            return _of_columns(name, by_split(path, paths), columns)
    if path.exists():
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise AbridgedError(f"the folder {name} holds no {', '.join((*_COLUMN_SUFFIXES, *_ROW_SUFFIXES))} file")
        of = by_split(path, files) if path.is_dir() else {"train": files}
        parts = {part: [row for file in some for row in rows(file)] for part, some in of.items()}
        return tagged_of_rows(name, parts, columns, _names_in_parquet(files))
    if path.suffix.lower() in (*_COLUMN_SUFFIXES, *SUFFIXES) or name.startswith((".", "/", "~")):
        raise AbridgedError(f"no such file or folder: {name}")
    repository, _, configuration = name.partition(":")
    return tagged_of_hub(name, hub_splits(repository, configuration or None, not_found("data", name)), columns)


def holds_conll(path: Path) -> bool:
    """Whether a file, or a file in a folder, has a name that only files of words and tags have."""
    paths = path.rglob("*") if path.is_dir() else [path]
    return any(p.is_file() and p.suffix.lower() in CONLL_SUFFIXES for p in paths)


def holds_tags(row: Row) -> bool:
    """Whether a row has a list of words and one of tags, in columns that are known as such."""
    known = known_columns(row)
    return known is not None and all(isinstance(row[column], list) for column in known)


def known_columns(row: Row) -> tuple[str, str] | None:
    """The columns of a row that are taken for words and tags."""
    words = next((column for column in KNOWN_WORDS if column in row), None)
    tags = next((column for column in KNOWN_TAGS if column in row), None)
    return (words, tags) if words is not None and tags is not None else None


def _of_columns(name: str, files: Mapping[str, Sequence[Path]], columns: tuple[str, ...] | None) -> TaggedData:
    places = (0, -1) if columns is None else _numbers(columns)
    read = {part: {path: list(_read_columns(path, places)) for path in some} for part, some in files.items()}
    told = account_of_files(name, {str(p): len(texts) for some in read.values() for p, texts in some.items()}, "texts")
    parts = {part: [one for texts in some.values() for one in texts] for part, some in read.items()}
    called = ("the first column", "the last") if columns is None else (f"column {places[0]}", f"column {places[1]}")
    return TaggedData.of(name, parts, called, read=told)


def _numbers(columns: Sequence[str]) -> tuple[int, int]:
    if not all(re.fullmatch(r"\d{1,3}", column, re.ASCII) for column in columns):
        raise AbridgedError(f"columns of words and tags have numbers, from 0: --columns 0,3, not {','.join(columns)}")
    return int(columns[0]), int(columns[1])


def _read_columns(path: Path, places: tuple[int, int]) -> Iterator[Tagged]:
    """The texts of one file: columns are parted by tabs where the first line has one, else by spaces.

    A line that begins with # and has another number of columns is a comment, as in CoNLL-U.
    """
    words: list[str] = []
    tags: list[str] = []
    width, apart = 0, None
    for number, line in enumerate([*lines_of(read_text(path)), ""], 1):
        if not line.strip():
            if words:
                yield Tagged.of_words(words, tags)
            words, tags = [], []
            continue
        if not width and line.startswith("# "):
            continue
        if not width:
            apart = "\t" if "\t" in line else None
        cells = [cell.strip() for cell in line.split(apart)]
        if cells[0] == DOCUMENT:
            continue
        if not width:
            width = len(cells)
            if width < 2 or max(places) >= width:
                raise AbridgedError(
                    f"{path} has no word and tag in the columns of its line {number}, '{line.strip()[:60]}'"
                )
        if len(cells) != width:
            if line.startswith("#"):
                continue
            raise AbridgedError(f"line {number} of {path} has {len(cells)} columns, and the lines before have {width}")
        word, tag = cells[places[0]], cells[places[1]]
        if not word or not tag:
            raise AbridgedError(f"line {number} of {path} has {'no tag' if word else 'no word'}")
        words.append(word)
        tags.append(tag)


def tagged_of_rows(
    name: str,
    parts: Parts,
    columns: tuple[str, ...] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> TaggedData:
    """The words and tags of rows, each a text; rows without words are left out.

    Args:
        columns: of words and tags; None: those that are known.
        names: of the tags that columns have as numbers, by column.

    Raises:
        AbridgedError: there are no such columns, or a row has not as many tags as words.
    """
    first = next((row for some in parts.values() for row in some), None)
    if first is None:
        raise AbridgedError(f"'{name}' has no rows")
    known = known_columns(first) if columns is None else columns
    if known is None or len(known) != 2 or not all(column in first for column in known):
        raise AbridgedError(
            f"'{name}' has the columns {listed(list(map(str, first)))}: say which hold words and their tags, as in "
            "--columns tokens,ner_tags"
        )
    both, called = (known[0], known[1]), (names or {}).get(known[1])
    left_out: dict[str, list[str]] = {}
    read = {part: list(_texts(some, both, called, left_out)) for part, some in parts.items()}
    return TaggedData.of(name, read, both, called, left_out=left_out)


def _texts(
    some: Iterable[Row], columns: tuple[str, str], called: Sequence[str] | None, left_out: dict[str, list[str]]
) -> Iterator[Tagged]:
    for row in some:
        words = _cells(row, columns[0])
        tags = [_tag(value, called, row) for value in _cells(row, columns[1])]
        if len(words) != len(tags):
            raise AbridgedError(
                f"{row.place} has {len(words)} words in '{columns[0]}' and {len(tags)} tags in '{columns[1]}'"
            )
        if not all(isinstance(word, str) and word.strip() for word in words) or not all(tags):
            raise AbridgedError(f"{row.place} has an empty word or tag, or one that is no text")
        if words:
            yield Tagged.of_words([" ".join(word.split()) for word in words], tags)
        else:
            left_out.setdefault(f"without {columns[0]}", []).append(row.place)


def _cells(row: Row, column: str) -> list[Any]:
    """A list; one that was written as text, in JSON or in Python; or words with spaces between them."""
    value = row.get(column)
    if isinstance(value, str) and value.strip().startswith("["):
        for read in (parse_json, ast.literal_eval):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(found, list):
                return found
    if isinstance(value, list | str) or value is None:
        return value if isinstance(value, list) else (value or "").split()
    raise AbridgedError(f"{row.place} has a {type(value).__name__} in its column '{column}', and words are wanted")


def _tag(value: Any, called: Sequence[str] | None, row: Row) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise AbridgedError(f"{row.place} has a tag that is neither a text nor a number")
    if isinstance(value, int) and called is not None:
        if not 0 <= value < len(called):
            raise AbridgedError(f"{row.place} has the tag {value}, and there are names for 0 to {len(called) - 1}")
        return called[value]
    return str(value).strip()


def tagged_of_hub(name: str, splits: Mapping[str, Any], columns: tuple[str, ...] | None = None) -> TaggedData:
    """`tagged_of_rows` of the parts of a `datasets` dataset, whose features name the tags."""
    parts = {part: rows_of_hub(part, splits.get(part, ())) for part in PARTS}
    names: dict[str, list[str]] = {}
    for split in splits.values():
        for column, feature in (getattr(split, "features", None) or {}).items():
            called = getattr(getattr(feature, "feature", feature), "names", None)
            if called:
                names[column] = list(called)
    return tagged_of_rows(name, parts, columns, names)


def _names_in_parquet(files: Sequence[Path]) -> dict[str, list[str]]:
    """The names of tags that `datasets` writes into its .parquet files, by column."""
    import pyarrow.parquet

    found: dict[str, list[str]] = {}
    for path in files:
        if path.suffix.lower() == ".parquet":
            told = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface")
            try:
                features = json.loads(told or b"{}").get("info", {}).get("features", {})
                found |= {c: f["feature"]["names"] for c, f in features.items() if "names" in f.get("feature", {})}
            except (ValueError, AttributeError, TypeError, KeyError):
                continue
    return found

"""Files of rows with named columns: .jsonl, .csv, .tsv, .parquet, and folders of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abridged.data.text import SPLITS, words_of_path
from abridged.errors import AbridgedError

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
Row = dict[str, Any]


def rows_by_split(where: Path) -> dict[str, list[Row]]:
    """The rows of a file, all under "train", or of a folder's files: train, validation and test by that word in a path.

    Raises:
        AbridgedError: there is no such file or folder, or it holds no rows that can be read.
    """
    if where.is_file():
        return {"train": list(rows(where)), "validation": [], "test": []}
    if not where.is_dir():
        raise AbridgedError(f"no such file or folder: {where}")
    paths = sorted(p for p in where.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
    if not paths:
        raise AbridgedError(f"the folder {where} holds no {', '.join(SUFFIXES)} file")
    of = {split: [p for p in paths if words_of_path(p.relative_to(where)) & words] for split, words in SPLITS.items()}
    if not of["train"]:
        of = {"train": paths, "validation": [], "test": []}
    return {split: [row for path in some for row in rows(path)] for split, some in of.items()}


def rows(path: Path) -> Iterator[Row]:
    """The rows of one file, as they come.

    Raises:
        AbridgedError: it cannot be read, or a line of it is no row.
    """
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is not an object")
                    yield row
        elif path.suffix == ".parquet":
            from datasets import Dataset

            yield from Dataset.from_parquet(str(path))
        elif path.suffix in SUFFIXES:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                yield from csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        else:
            raise ValueError(f"its name ends in none of {', '.join(SUFFIXES)}")
    except (UnicodeDecodeError, OSError, csv.Error, ValueError) as error:
        raise AbridgedError(f"cannot read rows from {path}: {error}") from error

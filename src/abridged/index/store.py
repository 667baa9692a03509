"""One SQLite file that knows which vectors stand for which stretches of which files, and not what a file is.

A content is what is in a file, by its hash: files of the same content share it, and a file that was renamed keeps it.
It has windows, stretches with a vector each that are searched, and parts, places with a vector each that are read when
one content is looked into. Stretches and places are numbers: seconds of a video, or characters of a text.

Vectors are scanned by numpy. The sqlite-vec extension would scan as well, is no faster on that many, and many builds of
Python cannot load extensions.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.evaluation import vectors
from abridged.evaluation.vectors import Matrix

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE settings(value TEXT NOT NULL);
CREATE TABLE contents(
    id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, fault TEXT, length REAL,
    spans BLOB, vectors BLOB, exact BLOB, places BLOB, parts BLOB);
CREATE TABLE files(path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX of_content ON files(digest);
PRAGMA user_version = {_VERSION};
"""


class NoIndex(AbridgedError):
    """There is no index yet, or no more than the empty file of one whose first writer was killed."""


@dataclass(frozen=True)
class Content:
    """What is kept of a file.

    Attributes:
        length: of all, in the unit of stretches.
        spans: (windows, 2), from and to.
        vectors: (windows, width) FP32, of length 1.
        places: (parts,), ascending.
        parts: (parts, width) FP32, of length 1.
    """

    length: float
    spans: np.ndarray
    vectors: np.ndarray
    places: np.ndarray
    parts: np.ndarray


class File(NamedTuple):
    """A file as it was seen: bytes, when it was changed (ns since 1970), and the hash of what is in it."""

    size: int
    modified: int
    digest: str


@dataclass(frozen=True)
class Windows:
    """All windows, in memory: `contents` (n,) numbers, `spans` (n, 2), and their vectors."""

    contents: np.ndarray
    spans: np.ndarray
    matrix: Matrix
    first: dict[int, int]  #: of each content, which of them is its first


class Store:
    """An open index; its methods raise AbridgedError where the file is none, is damaged, or is in use for long."""

    def __init__(self, file: Path, new: Callable[[], dict[str, Any]] | None = None) -> None:
        """Open `file` to read it, or, where the settings of a `new` one are given, to write it, and make it if need be.

        Raises `NoIndex` where there is nothing to read yet.

        Settings have `width` of the vectors and their `kind`; what else is in them is the writer's.
        """
        self.file, self.fresh = file, False
        if new is None and not file.is_file():
            raise NoIndex(f"there is no index {file}: make it with `abridged index MODEL FOLDER`")
        with self._faults():  # a reader may have to undo what a killed writer left, so that it, too, opens to write
            where = f"{file.absolute().as_uri()}?mode={'rw' if new is None else 'rwc'}"
            self._base = sqlite3.connect(where, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
            version = self._base.execute("PRAGMA user_version").fetchone()[0]
            empty = not self._base.execute("SELECT 1 FROM sqlite_master").fetchone()
        if empty and new is not None:
            self._run("PRAGMA page_size = 32768")  # contents are long
            settings, self.fresh = json.dumps(new()), True
            with self.together():
                for statement in _SCHEMA.strip().rstrip(";").split(";\n"):
                    self._run(statement)
                self._run("INSERT INTO settings VALUES (?)", [settings])
        elif empty and not version:
            raise NoIndex(f"the index {file} is empty: make it with `abridged index MODEL FOLDER`")
        elif version != _VERSION:
            raise AbridgedError(f"{file} is no index of this version of abridged: delete it, or name another file")
        with self._faults():
            self._run(f"PRAGMA {'query_only = ON' if new is None else 'synchronous = NORMAL'}")
            self.settings: dict[str, Any] = dict(json.loads(self._run("SELECT value FROM settings")[0][0]))
            self.width, self.kind = int(self.settings["width"]), str(self.settings["kind"])
            if self.width < 1 or self.kind not in vectors.KINDS:
                raise ValueError("its settings are none")

    def close(self) -> None:
        self._base.close()

    def set(self, **settings: Any) -> None:
        """Change some settings."""
        self.settings.update(settings)
        self._run("UPDATE settings SET value = ?", [json.dumps(self.settings)])

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is written whole or not at all."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def files(self) -> dict[str, File]:
        """All files, by path from the folder on."""
        with self._faults():
            found = self._run("SELECT path, size, modified, digest FROM files ORDER BY path")
            return {_within(path): File(*rest) for path, *rest in found}

    def faults(self) -> dict[str, str]:
        """Why the contents that could not be read could not, by hash."""
        return dict(self._run("SELECT digest, fault FROM contents WHERE fault IS NOT NULL"))

    def knows(self, digest: str) -> bool:
        """Whether a content was looked into."""
        return bool(self._run("SELECT 1 FROM contents WHERE digest = ?", [digest]))

    def see(self, path: str, file: File) -> None:
        """Note a file."""
        self._run("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [os.fsencode(path), *file])

    def add(self, digest: str, content: Content | str) -> None:
        """Note a content, or why it cannot be read."""
        fault = content if isinstance(content, str) else None
        values: Sequence[Any] = (None,) * 6
        if not isinstance(content, str):
            binary = self.kind == "binary"
            values = (
                content.length,
                content.spans.astype("<f8").tobytes(),
                vectors.encode(content.vectors, self.kind),
                vectors.encode(content.vectors, "int8") if binary else None,
                content.places.astype("<f8").tobytes(),
                vectors.encode(content.parts, self._on_disk),
            )
        self._run(
            "INSERT OR REPLACE INTO contents(digest, fault, length, spans, vectors, exact, places, parts) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [digest, fault, *values],
        )

    def forget(self, paths: Iterable[str]) -> None:
        """Drop files, and contents that no file has."""
        for path in paths:
            self._run("DELETE FROM files WHERE path = ?", [os.fsencode(path)])
        self._run("DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM files)")

    def windows(self) -> Windows:
        """All windows."""
        numbers, counts, spans, blobs = [], [], [], []
        with self._faults():
            found = self._run("SELECT id, spans, vectors FROM contents WHERE fault IS NULL ORDER BY id")
            for number, span, blob in found:
                spans.append(np.frombuffer(span, "<f8").reshape(-1, 2))
                blobs.append(blob)
                numbers.append(number)
                counts.append(len(spans[-1]))
                if len(blob) != len(spans[-1]) * vectors.size(self.width, self.kind):
                    raise ValueError("windows and vectors do not fit")
                if not (np.isfinite(spans[-1]).all() and (spans[-1][:, 0] <= spans[-1][:, 1]).all()):
                    raise ValueError("a window is none")
            return Windows(
                np.repeat(np.array(numbers, np.int64), counts),
                np.concatenate(spans) if spans else np.zeros((0, 2)),
                Matrix(blobs, self.width, self.kind),
                dict(zip(numbers, np.cumsum([0, *counts]).tolist(), strict=False)),
            )

    def exact(self, windows: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Of a `binary` index the vectors (n, width) FP32 of some windows, by content and number in it."""
        with self._faults():
            wanted = ", ".join(str(int(content)) for content in windows)
            for content, exact in self._run(f"SELECT id, exact FROM contents WHERE id IN ({wanted})"):
                yield content, vectors.decode(exact, self.width, "int8", windows[content])

    def parts(self, content: int, start: float = -np.inf, end: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
        """A content's places (n,) from `start` to before `end`, and their vectors (n, width) FP32."""
        with self._faults():
            (row,) = self._run("SELECT places, parts FROM contents WHERE id = ?", [content])
            places = np.frombuffer(row[0], "<f8")
            if len(row[1]) != len(places) * vectors.size(self.width, self._on_disk):
                raise ValueError("places and vectors do not fit")
            inside = slice(*np.searchsorted(places, [start, end]))
            return places[inside], vectors.decode(row[1], self.width, self._on_disk, inside)

    @property
    def _on_disk(self) -> str:
        """How vectors are stored that are read where they are needed."""
        return "int8" if self.kind == "binary" else self.kind

    def paths(self) -> dict[int, list[tuple[str, int]]]:
        """Of each content the files, and when they were changed (ns since 1970)."""
        found: dict[int, list[tuple[str, int]]] = {}
        with self._faults():
            for number, path, modified in self._run(
                "SELECT c.id, f.path, f.modified FROM files f JOIN contents c USING (digest) "
                "WHERE c.fault IS NULL ORDER BY f.path"
            ):
                found.setdefault(number, []).append((_within(path), int(modified)))
        return found

    def length(self) -> float:
        """Of all contents together."""
        return float(self._run("SELECT total(length) FROM contents")[0][0])

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._faults():
            return self._base.execute(statement, values).fetchall()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise AbridgedError(f"cannot use the index {self.file}: {error}") from error
        except (
            sqlite3.DatabaseError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            OverflowError,
            MemoryError,
        ) as error:
            raise AbridgedError(f"{self.file} is no index, or damaged ({error}): delete it, or name another") from error


def _within(path: bytes) -> str:
    """A path as it is written, from the folder on; ValueError where it leads out of it."""
    name = os.fsdecode(path)
    if name.startswith("/") or not name or "\0" in name or ".." in name.split("/"):
        raise ValueError("a path leads out of its folder")
    return name

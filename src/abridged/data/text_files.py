"""Files of texts that are gone through a part at a time: a text a line, or in a column of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from abridged.core.errors import AbridgedError
from abridged.core.text import open_text
from abridged.data.dataset import announce
from abridged.data.rows import is_rows, listed, rows
from abridged.data.sentences import sentence_columns


class TextFile:
    """The texts of a file, none of which is empty, so that what is made of the n-th is the n-th.

    It is read twice: once to count and to find what is wrong before any work is done, and then a part at a time.

    Raises:
        AbridgedError: it cannot be read, has no text or no such column, or a text is empty.
    """

    #: Texts that are in memory at once.
    CHUNK = 4096

    def __init__(self, path: Path, column: str | None = None) -> None:
        if not path.is_file():
            raise AbridgedError(f"no such file: {path}")
        self.path = path
        self.column = self._column(column)
        self._count = 0
        for place, text in self._texts():
            self._count += 1
            if not text:
                raise AbridgedError(f"{place} is empty: there is nothing to make a vector of")
        if not self._count:
            raise AbridgedError(f"{path} has no text")
        announce(f"{path}: {self._count:,} texts" + (f", {self.column}" if self.column else ""))

    def __len__(self) -> int:
        return self._count

    def chunks(self) -> Iterator[list[str]]:
        """The texts, `CHUNK` of them at a time."""
        some: list[str] = []
        for _, text in self._texts():
            some.append(text)
            if len(some) == self.CHUNK:
                yield some
                some = []
        if some:
            yield some

    def _column(self, asked: str | None) -> str | None:
        if not is_rows(self.path):
            if asked is not None:
                raise AbridgedError(f"{self.path} is a text, which has no columns")
            return None
        first = next(rows(self.path), None)
        if first is None:
            raise AbridgedError(f"'{self.path}' has no rows")
        if asked is not None and asked not in first:
            raise AbridgedError(f"'{self.path}' has no column '{asked}': it has {listed(list(map(str, first)))}")
        return asked or sentence_columns(str(self.path), first)[0]

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Place and text, without spaces around it."""
        if self.column is not None:
            for row in rows(self.path):
                yield row.place, row.text(self.column)
            return
        try:
            with open_text(self.path) as lines:
                for number, line in enumerate(lines, 1):
                    yield f"line {number} of {self.path}", line.strip()
        except OSError as error:
            raise AbridgedError(f"cannot read {self.path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise AbridgedError(f"cannot read {self.path}: not UTF-8 text ({error.reason})") from None

"""People's text as it comes: files in UTF-8, JSON, and what of it may be shown in a terminal."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from abridged.core.errors import AbridgedError

#: What a terminal would obey rather than show: controls, line and paragraph separators, changes of direction, and
#: halves of characters, which no output can encode.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file in UTF-8, behind its byte order mark; `newline` as `open` takes it."""
    # "utf-8-sig" would take a file that is the first half of such a mark for empty
    with path.open(encoding="utf-8", newline=newline) as file:
        if file.read(1) != "\ufeff":
            file.seek(0)
        yield file


def read_text(path: Path) -> str:
    """A whole text file: a byte order mark is dropped, line ends are those of the file's kind of machine.

    Raises:
        AbridgedError: it cannot be read or is not UTF-8.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except OSError as error:
        raise AbridgedError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise AbridgedError(f"cannot read {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def lines_of(text: str) -> list[str]:
    r"""The lines of a text, which end in \n and nothing else: `str.splitlines` parts sentences at U+2028 or \f, too."""
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        ValueError: it is none, is nested too deeply, has a key twice, a number of thousands of digits, or half a
            character (a surrogate alone).
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError("it has a number of thousands of digits" if "digits" in str(error) else str(error)) from None
    escaped = re.search(r"\\u[dD][89a-fA-F]", text)  # surrogates cannot come in any other way
    if escaped and has_half_characters(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half a character (a surrogate alone)")
    return value


def has_half_characters(text: str) -> bool:
    """Whether half of a character (a surrogate alone) is in a text, which nothing can encode."""
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def refuse_half_characters(*texts: str) -> None:
    """Raise AbridgedError for a text that a tokenizer could not read."""
    if any(map(has_half_characters, texts)):
        raise AbridgedError("the text holds half a character (a surrogate alone): it is not UTF-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return found


def printable(text: str) -> str:
    """A text with what a terminal would obey spelled out, as \\x1b; tabs and line ends stay."""
    return _UNSEEN.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)

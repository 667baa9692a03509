"""Files of text as the index reads them: what is in them, cut into passages that a model reads whole; and places.

Stretches are characters of a file's text. Of rows, that is the words in their cells, row below row.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from abridged.core.errors import AbridgedError
from abridged.core.text import read_text
from abridged.data.rows import Row, is_rows, rows

#: Endings of files that are taken for texts.
SUFFIXES = (".csv", ".jsonl", ".md", ".tsv", ".txt")
#: A passage grows by whole paragraphs until it has so many tokens; and has so many at most, whatever a model reads: the
#: more is in it, the less its vector says of each.
ENOUGH, MOST = 64, 256
#: The share of a window that the next one repeats, where a paragraph is cut.
OVERLAP = 0.25
#: Bytes of a file, which is in memory as a whole.
_LARGEST = 256 * 2**20

_SENTENCE = re.compile(r"\S.*?(?:[.!?…。！？]['\"”’»)\]]*(?=\s|\Z)|[。！？]|\Z)", re.DOTALL)
_WORD = re.compile(r"\S+")
_HEADING = re.compile(r"^#{1,6}\s", re.MULTILINE)
_NUMBER = re.compile(r"[-+\d.,:/%\s]*")

Span = tuple[int, int]  #: characters, from and to
Count = Callable[[Sequence[str]], list[int]]  #: tokens of each text


class TextError(AbridgedError):
    """A file of text cannot be read, or says nothing."""


@dataclass(frozen=True)
class Document:
    """What a file says.

    Attributes:
        text: all of it.
        starts: where in it each line, or row, begins; ascending, from 0.
        lines: the first and the last line of the file that each of them is from; from 1.
        blocks: stretches that no passage reaches across: rows, or what is under a heading.
    """

    text: str
    starts: Sequence[int]
    lines: Sequence[tuple[int, int]]
    blocks: Sequence[Span]

    def place(self, start: int, end: int) -> tuple[int, int]:
        """The first and the last line of a stretch."""
        first, last = (bisect_right(self.starts, at) - 1 for at in (start, max(start, end - 1)))
        return self.lines[first][0], self.lines[last][1]


def read_document(path: Path) -> Document:
    """Read a file of `SUFFIXES`.

    Raises:
        TextError: it cannot be read, or there are no words in it.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise TextError(f"it has more than {_LARGEST >> 20} MB: cut it into parts")
        found = _of_rows(path) if is_rows(path) else _of_lines(path)
    except TextError:
        raise
    except AbridgedError as error:  # the file's name stands beside the reason already
        said = str(error).replace(f"cannot read rows from {path}: ", "cannot be read as rows: ")
        raise TextError(said.replace(f"cannot read {path}: ", "cannot be read: ")) from error
    if not re.search(r"\w", found.text):
        raise TextError("there are no words in it")
    return found


def _of_lines(path: Path) -> Document:
    text = read_text(path)
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    cuts = [0, *(match.start() for match in _HEADING.finditer(text) if path.suffix.lower() == ".md"), len(text)]
    return Document(text, starts, [(n, n) for n in range(1, len(starts) + 1)], list(zip(cuts, cuts[1:], strict=False)))


def _of_rows(path: Path) -> Document:
    texts, starts, lines, blocks, length = [], [], [], [], 0
    for row in rows(path):
        if said := words_of(row):
            texts.append(said)
            starts.append(length)
            lines.append((row.number, row.number + max(0, row.lines - 1)))
            blocks.append((length, length + len(said)))
            length += len(said) + 1
    return Document("\n".join(texts), starts, lines, blocks)


def words_of(row: Row) -> str:
    """The cells of a row that are texts, and no numbers or dates, one below the other."""
    cells = (value.strip() for value in row.values() if isinstance(value, str))
    return "\n".join(cell for cell in cells if not _NUMBER.fullmatch(cell))


def passages(document: Document, count: Count, limit: int) -> list[Span]:
    """Stretches of a document that have `limit` tokens at most, in order, that together are all of it.

    A passage is one paragraph or, of short ones, several within a block. Where a paragraph is longer, it is cut between
    sentences, and a sentence that is longer between words; such windows overlap.
    """
    limit = max(1, min(limit, MOST))
    blocks = [list(_paragraphs(document.text, *block)) for block in document.blocks]
    sentences = _sentences(document.text, [span for some in blocks for span in some], count)
    found: list[Span] = []
    for some in blocks:
        begun: list[Span] = []  # paragraphs of a passage that has so many
        had = 0  # tokens
        for span, units in zip(some, sentences, strict=False):
            tokens = sum(length for _, length in units)
            if begun and (had >= ENOUGH or had + tokens > limit):
                found.append((begun[0][0], begun[-1][1]))
                begun, had = [], 0
            if tokens > limit:
                found += windows(_short(document.text, units, count, limit), limit)
            else:
                begun, had = [*begun, span], had + tokens
        if begun:
            found.append((begun[0][0], begun[-1][1]))
    return found


def _paragraphs(text: str, start: int, end: int) -> Iterator[Span]:
    """Runs of lines that are not empty, within a stretch, without spaces around them."""
    first = last = -1
    for line in [*text[start:end].split("\n"), ""]:
        if line.strip():
            first = start + len(line) - len(line.lstrip()) if first < 0 else first
            last = start + len(line.rstrip())
        elif first >= 0:
            yield first, last
            first = -1
        start += len(line) + 1


def _sentences(text: str, paragraphs: Sequence[Span], count: Count) -> Iterator[list[tuple[Span, int]]]:
    """The sentences of each paragraph with their tokens, which are counted together."""
    spans = [[match.span() for match in _SENTENCE.finditer(text, *paragraph)] for paragraph in paragraphs]
    tokens = iter(count([text[slice(*span)] for some in spans for span in some]))
    for some in spans:
        yield [(span, next(tokens)) for span in some]


def _short(text: str, units: Sequence[tuple[Span, int]], count: Count, limit: int) -> list[tuple[Span, int]]:
    """Sentences, and instead of those beyond the limit their words; instead of words that are, pieces of them."""
    found: list[tuple[Span, int]] = []
    for (start, end), tokens in units:
        if tokens <= limit:
            found.append(((start, end), tokens))
            continue
        words = [match.span() for match in _WORD.finditer(text, start, end)]
        for word, length in zip(words, count([text[slice(*word)] for word in words]), strict=True):
            size = len(range(*word)) if length <= limit else max(1, limit // 4)  # a character is four tokens at most
            for at in range(*word, size):
                piece = (at, min(word[1], at + size))
                found.append((piece, length if length <= limit else min(limit, 4 * size)))
    return found


def windows(units: Sequence[tuple[Span, int]], limit: int) -> list[Span]:
    """Runs of neighbours that have `limit` tokens together at most; each next one begins within the one before, where
    some of its last units have no more than `OVERLAP` of the limit."""
    found: list[Span] = []
    first = 0
    while first < len(units):
        last, tokens = first, 0
        while last < len(units) and (last == first or tokens + units[last][1] <= limit):
            tokens += units[last][1]
            last += 1
        found.append((units[first][0][0], units[last - 1][0][1]))
        if last == len(units):
            break
        back, repeated, room = last, 0, min(OVERLAP * limit, limit - units[last][1])  # what is next has to fit
        while back - 1 > first and repeated + units[back - 1][1] <= room:
            back -= 1
            repeated += units[back][1]
        first = back
    return found

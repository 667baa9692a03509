"""What the index does with files of one kind: which they are, how one is looked into, and how a hit in one is told.

A folder has an index for each kind, since the models that see videos are others than those that read texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.data.video import decode
from abridged.index import moments, passages
from abridged.index.embedder import ReadsTexts
from abridged.index.store import Content
from abridged.index.videos import look_into


@dataclass(frozen=True)
class Reader:
    """Of files of one kind.

    Attributes:
        name: what they are.
        index: the file's name in a folder that has its index within it.
        suffixes: endings of their names.
        fault: what is raised where one cannot be read.
        look_into: what is kept of one, by a model.
        merge: hits out of the windows in one, as `moments.merge` gives them.
        amount: how much of what `unit` says there is in a content.
        by_ending: whether it is a name's ending that says how a file is read.
    """

    name: str
    index: str
    suffixes: tuple[str, ...]
    fault: type[AbridgedError]
    look_into: Callable[[Path, Any], Content]
    merge: Callable[[np.ndarray, np.ndarray, float], list[tuple[float, float, float]]]
    amount: Callable[[Content], float]
    unit: str
    by_ending: bool


def read(path: Path, embedder: ReadsTexts) -> Content:
    """The vectors of a text's passages.

    Raises:
        TextError: it cannot be read, or says nothing.
    """
    document = passages.read_document(path)
    spans = passages.passages(document, embedder.count, embedder.limit)
    vectors = embedder.embed_passages([document.text[start:end] for start, end in spans])
    nothing = np.zeros((0, embedder.width), np.float32)
    return Content(len(document.text), np.array(spans, float), vectors, np.zeros(0), nothing)


VIDEOS = Reader(
    "videos", ".abridged-index.sqlite", decode.SUFFIXES, decode.VideoError, look_into, moments.merge,
    lambda content: content.length / 3600, "hours of video", False,
)  # fmt: skip
TEXTS = Reader(
    "texts", ".abridged-texts.sqlite", passages.SUFFIXES, passages.TextError, read, moments.apart,
    lambda content: len(content.spans), "passages", True,
)  # fmt: skip
READERS = {reader.name: reader for reader in (VIDEOS, TEXTS)}


def reader_for(embedder: Any) -> Reader:
    """Of what a model makes vectors of."""
    return TEXTS if isinstance(embedder, ReadsTexts) else VIDEOS

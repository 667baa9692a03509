"""Vectors of any number of texts as Parquet files of so many rows each, every one made for itself.

A shard depends on its own texts, the model and the settings, and on nothing else: whoever makes it, on one thread and a
processor of one kind, makes the same bytes. So they can be made in any order, by any number of workers, and those that
are there after a run was killed are those that need not be made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from abridged.core.atomic import written_file
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name
from abridged.data.rows import Row
from abridged.data.text_source import Cursor, TextSource
from abridged.evaluation.sentences import SentenceEncoder, VectorSettings

#: Texts that are put in order of their lengths together, and tokenised at once.
WINDOW = 2048
#: The key of a Parquet file's metadata under which a shard tells of itself, as JSON.
TOLD = b"abridged"


@dataclass(frozen=True)
class Shards:
    """What is to be made; it can be sent to another process.

    Attributes:
        model: its name or directory.
        source: the texts, whose rows are numbered through.
        folder: that of the files.
        settings: how vectors are made and stored.
        prompt: the name of what is put before each text.
        rows: of a shard; the last one may have fewer.
    """

    model: str
    source: TextSource
    folder: Path
    settings: VectorSettings = VectorSettings("float16")
    prompt: str | None = None
    rows: int = 8192

    def __len__(self) -> int:
        return -(-len(self.source) // self.rows)

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{number:05d}.parquet"

    def found(self, number: int) -> dict[str, int] | None:
        """What `write` has told of a shard that is there; None where none is, or it cannot be read."""
        import pyarrow
        import pyarrow.parquet

        try:
            metadata = pyarrow.parquet.read_metadata(self.path(number))
            told: dict[str, int] = json.loads(metadata.metadata[TOLD])["counts"]
            return told if metadata.num_rows == told["rows"] else None
        except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError):
            return None

    def begin(self) -> Callable[[int], dict[str, int]]:
        """A model loaded, and with it `write`, of which the number of the shard is left to say.

        Raises:
            AbridgedError: the model cannot be loaded, makes no vectors, or has no such prompt.
        """
        from transformers.utils import logging

        from abridged.models.load import load_model

        logging.disable_progress_bar()  # one for each worker would be torn
        encoder = SentenceEncoder(*load_model(self.model))
        with _one_thread():
            width = encoder.encode(["a"], self.prompt).vectors.shape[1]
        return partial(self.write, encoder, Cursor(self.source), width)

    def write(self, encoder: SentenceEncoder, cursor: Cursor, width: int, number: int) -> dict[str, int]:
        """Write a shard; returns its counts: `rows`, `width`, those `cut` and those `missing`.

        Raises:
            AbridgedError: what a row holds is no text, or is not what is kept of the others; the data have changed; or
                the disk does not let it.
        """
        import pyarrow.parquet

        start = number * self.rows
        count = min(self.rows, len(self.source) - start)
        vectors, missing, cut = np.zeros((count, width), np.float32), np.zeros(count, bool), 0
        kept: list[Row] = []
        with _one_thread():
            for first in range(0, count, WINDOW):
                some = list(cursor.take(start + first, min(WINDOW, count - first)))
                kept += [Row({name: row.get(name) for name, _ in self.source.kept}, row.source, row.number, row.lines)
                         for row, _ in some]  # fmt: skip
                texts = [text for _, text in some]
                there = np.array([first + i for i, text in enumerate(texts) if text], dtype=np.int64)
                missing[[first + i for i, text in enumerate(texts) if not text]] = True
                if len(there):
                    found = encoder.encode([text for text in texts if text], self.prompt, self.settings.batch_size)
                    vectors[there], cut = found.vectors, cut + found.cut
        stored, width = self.settings.stored(vectors), self.settings.dimensions or width
        counts = {"rows": count, "width": width, "cut": cut, "missing": int(missing.sum())}
        told = {"model": public_name(self.model), "vectors": self.settings.kind, "width": width, "counts": counts}
        table = _table(start, stored, missing, kept, self.source.kept)
        table = table.replace_schema_metadata({TOLD: json.dumps(told)})
        with written_file(self.path(number)) as temporary:
            pyarrow.parquet.write_table(table, temporary, compression="zstd", use_dictionary=False)
        return counts


def _table(
    start: int, values: np.ndarray, missing: np.ndarray, rows: Sequence[Row], kept: Sequence[tuple[str, bool]]
) -> Any:
    """An Arrow table: `row`, what is kept, and `vector`, a list of one size, which is null where text is missing."""
    import pyarrow

    columns: dict[str, Any] = {"row": pyarrow.array(np.arange(start, start + len(values)))}
    for name, whole in kept:
        found = [_whole(row, name) if whole else row.text(name) or None for row in rows]
        columns[name] = pyarrow.array(found, pyarrow.int64() if whole else pyarrow.string())
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=pyarrow.array(missing))
    return pyarrow.table(columns)


def _whole(row: Row, column: str) -> int | None:
    """A whole number; AbridgedError where a row has something else than the first one has."""
    value = row[column]
    if value is not None and (type(value) is not int or not -(2**63) <= value < 2**63):
        raise AbridgedError(
            f"{row.place} has no whole number of 64 bits in its column '{column}', as the first row has"
        )
    return value


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of floats depend on how many threads share them."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

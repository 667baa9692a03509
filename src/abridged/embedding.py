"""Vectors of data of any size, a shard at a time, by any number of workers (`abridged embed --output DIR`)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.names import gguf_file, public_name, resolve
from abridged.core.parallel import cores, spread
from abridged.core.progress import counter, seconds_since
from abridged.core.record import RECORD, environment

#: Bytes that a worker takes beside the model.
_WORKER = 1 << 30


def embed_data(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    column: str | None = None,
    keep: Sequence[str] = (),
    split: str | None = None,
    prompt: str | None = None,
    vectors: str = "float16",
    dimensions: int | None = None,
    batch_size: int = 32,
    shard_rows: int = 8192,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a vector of every text to the directory `output`, as Parquet files `shard-00000.parquet`, …

    Each has the columns `row`, the number of the text from 0 on; those of `keep`; and `vector`, a list of one size,
    null where a row has no text. The bytes are the same whatever the number of workers, and after an interruption.

    Args:
        data, column, keep, split: see `TextSource.open`; `keep` are its `kept`.
        prompt: the name of what is put before each text, of those that the model has.
        vectors: float32; float16; int8, each vector in steps of its own; or binary, eight signs in a uint8. The last
            two keep a vector's direction, and not its length.
        dimensions: numbers of a vector that are kept, the first ones; None: all.
        batch_size: texts that the model reads at once.
        shard_rows: texts of a file, of which one is lost at most by each worker that is killed.
        workers: processes of one thread each; None: as many as there are cores, memory and shards for.
        resume, overwrite: go on with an interrupted run; replace an output that abridged wrote.

    Returns:
        `texts`, `width`, `cut`, `missing`, `shards`, `texts_per_second`.

    Raises:
        AbridgedError: bad input or a fault, in one sentence; an interrupted run can go on with `resume`.
    """
    from abridged.data.text_source import TextSource
    from abridged.evaluation.sentences import VectorSettings
    from abridged.evaluation.vectors import KINDS
    from abridged.index.shards import Shards
    from abridged.training.workspace import Workspace

    if vectors not in ("float32", *KINDS):
        raise AbridgedError(f"vectors are stored as float32, {', '.join(KINDS)}, not as {vectors!r}")
    settings = VectorSettings(vectors, dimensions, batch_size)
    inputs = [one for one in (str(model), str(data)) if Path(one).expanduser().exists()]
    with Workspace(output, resume=resume, overwrite=overwrite, inputs=inputs) as workspace:
        source = TextSource.open(data, column, keep, split)
        where = resolve(model)
        where = str(Path(where).absolute()) if Path(where).exists() else where
        shards = Shards(where, source, workspace.parts, settings, prompt, shard_rows)
        versions = environment()["versions"]
        run = {
            **{"version": versions.pop("abridged"), "model": _digest(model), "data": source.marks, "keep": [*keep]},
            **{"vectors": vectors, "dimensions": dimensions, "prompt": prompt, "batch_size": batch_size},
            "shard_rows": shard_rows,
        }
        for note in workspace.check_same_run(run, versions):
            print(f"note: {note}", file=sys.stderr)
        workspace.save_state({}, {})  # by which a run is known for one that can go on
        workspace.parts.mkdir(exist_ok=True)
        there = [shards.found(number) for number in range(len(shards))]
        counts = [found for found in there if found is not None]
        wanted = [number for number, found in enumerate(there) if found is None]
        before, began = sum(count["rows"] for count in counts), time.perf_counter()
        done = before
        with counter("texts", before) as show:
            for count in _made(shards, wanted, workers):
                counts.append(count)
                done += count["rows"]
                show(done, len(source), f"{(done - before) / seconds_since(began):,.0f} texts/s")
        told = {
            **{"texts": done, "width": counts[0]["width"], "cut": sum(count["cut"] for count in counts)},
            **{"missing": sum(count["missing"] for count in counts), "shards": len(shards)},
        }
        account = {
            **{"model": public_name(model), "data": public_name(data), "vectors": vectors, "prompt": prompt, **told},
            **{"dimensions": dimensions, "shard_rows": shard_rows, "keep": [*keep], **environment()},
        }
        workspace.finished.mkdir(parents=True)
        for number in range(len(shards)):
            _link(shards.path(number), workspace.finished)
        (workspace.finished / RECORD).write_text(json.dumps(account, indent=1), encoding="utf-8")
        workspace.publish()
    for lost, what in ((told["cut"], "are longer than the model reads and lost their ends"),
                       (told["missing"], "are empty or missing: their vectors are null")):  # fmt: skip
        if lost:
            print(f"note: {lost:,} of {done:,} texts {what}", file=sys.stderr)
    return {**told, "texts_per_second": (done - before) / seconds_since(began)}


def _made(shards: Any, wanted: Sequence[int], workers: int | None) -> Iterator[dict[str, int]]:
    """The counts of the shards that are wanted, which are made."""
    if not wanted:
        return iter(())
    return spread(shards.begin, wanted, min(workers or _workers(shards.model), len(wanted)))


def _workers(model: str) -> int:
    """As many as there are cores, and memory for in FP32."""
    from abridged.core.hardware import free_memory

    where = Path(model)
    weights = sum(path.stat().st_size for path in where.glob("*.safetensors")) if where.is_dir() else 0
    return max(1, min(cores(), free_memory() // (_WORKER + 2 * weights)))


def _digest(model: str | Path) -> str:
    """What tells a model from others."""
    from abridged.core.digest import file_sha256
    from abridged.index.embedder import identify

    file = gguf_file(model)
    return str(identify(model)["digest"]) if file is None else file_sha256(file)


def _link(path: Path, folder: Path) -> None:
    """Put a file into a folder, too: until the result is in its place, what it is made of stays where it was."""
    try:
        os.link(path, folder / path.name)
    except OSError:  # the file system has no links
        shutil.copyfile(path, folder / path.name)

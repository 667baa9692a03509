"""Search in 100,000 windows: time, memory and recall, by how vectors are stored.

    python benchmarks/index.py [--windows 100000] [--width 256] [--quick]

Vectors are made up as videos make them: scenes of a theme, windows of a scene. Each kind is measured in a process of
its own with one thread; on a busy machine processor time is what a quiet one would take. Memory is what opening the
index and searching adds to the imports. Recall is of the ten nearest in FP32. A row of benchmarks/results/index.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import append, quick_settings, speed_options

from abridged.evaluation.vectors import KINDS, top, unit
from abridged.index.build import build
from abridged.index.readers import VIDEOS
from abridged.index.search import Searcher
from abridged.index.store import Content, File, Store

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PER_FILE, QUERIES = 200, 200


class Width:
    """Stands for a model: only its width counts."""

    frames, side = 8, 224

    def __init__(self, width: int) -> None:
        self.width = width


def vectors(windows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows (n, width), and queries near some of them as a text is to what it describes: far, but nearest."""
    random = np.random.default_rng(0)
    themes = random.normal(size=(200, width))
    scenes = np.repeat(
        themes[random.integers(0, 200, windows // 10)] + random.normal(size=(windows // 10, width)), 10, 0
    )
    found = unit(scenes + 0.7 * random.normal(size=scenes.shape))
    near = found[random.integers(0, len(found), QUERIES)]
    return found, unit(near + 2 * unit(random.normal(size=near.shape)))


def measure(folder: Path, width: int) -> dict:
    """Time, memory and recall of the index in a folder; to be called in a process of its own."""
    queries, right = np.load(folder / "queries.npy"), np.load(folder / "right.npy")
    before = resident()
    began = time.perf_counter()
    searcher = Searcher(folder / "model", folder, embedder=lambda name: Width(width))
    opened = time.perf_counter() - began
    times, spent, recalled = [], [], 0.0
    searcher.near(queries[0], 10)
    for query, wanted in zip(queries, right, strict=True):
        began = time.perf_counter(), time.process_time()
        hits = searcher.near(query, 10)
        times.append(time.perf_counter() - began[0])
        spent.append(time.process_time() - began[1])
        scores, _ = searcher._scores(query, None)
        best = searcher._exact(query, scores, top(scores, 2000), 200)[:10]
        recalled += len(set(wanted.tolist()) & set(best.tolist())) / 10
        assert len(hits) == 10
    return {
        "open_ms": round(1e3 * opened, 1),
        "processor_ms": round(1e3 * float(np.median(spent)), 2),
        "median_ms": round(1e3 * float(np.median(times)), 2),
        "slowest_ms": round(1e3 * max(times), 2),
        "memory_mb": round((resident() - before) / 2**20, 1),
        "vectors_mb": round(searcher.windows.matrix.values.nbytes / 2**20, 2),
        "file_mb": round((folder / VIDEOS.index).stat().st_size / 2**20, 1),
        "recall_at_10": round(recalled / len(queries), 4),
    }


def resident() -> int:
    """Bytes that this process has had in memory at most, since it is this program."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def make(folder: Path, kind: str, windows: int, width: int) -> None:
    """An index of made-up files in a folder, each with as many frames as windows."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    build(folder / "model", folder, kind=kind, embedder=lambda name: Width(width))
    every, queries = vectors(windows, width)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "right.npy", np.stack([np.argsort(-(every @ query))[:10] for query in queries]))
    spans = np.stack([np.arange(PER_FILE), np.arange(PER_FILE) + 2.0], 1)
    store = Store(folder / VIDEOS.index, dict)
    with store.together():
        for number, some in enumerate(np.split(every, len(every) // PER_FILE)):
            store.add(str(number), Content(PER_FILE + 1.0, spans, some, spans[:, 0], some))
            store.see(f"{number}.mp4", File(1, 1, str(number)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = speed_options(parser)  # quick as it is
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure, asked.width)))
        sys.exit()
    rows = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as where:
            make(Path(where), kind, asked.windows, asked.width)
            command = [sys.executable, __file__, "--measure", where, "--width", str(asked.width)]
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
            rows[kind] = json.loads(run.stdout)
        print(f"{kind:<8}", "  ".join(f"{name} {value}" for name, value in rows[kind].items()), flush=True)
    found = {"windows": asked.windows, "width": asked.width, "rows": rows}
    append("index", found, asked.results, settings=quick_settings(asked))

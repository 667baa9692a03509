"""Annotation files of published collections, by the layout that each was published in.

MSR-VTT: `MSRVTT_JSFUSION_test.csv` is the test part 1k-A of Yu et al. (JSFusion, ECCV 2018, arXiv:1808.02559);
`MSRVTT_data.json` (Xu et al., CVPR 2016) beside it, all of whose other videos are to train on (9k), as Gabeur et al.
(ECCV 2020, arXiv:2007.10639) do. MSVD: JSON lists of `id` and `caption`. DiDeMo: Hendricks et al., ICCV 2017,
arXiv:1708.01641. QVHighlights: Lei et al., NeurIPS 2021, arXiv:2107.09609.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.text import open_text, parse_json, read_text
from abridged.data.rows import SPLITS, words_of_path
from abridged.data.video.clips import Clip, VideoData
from abridged.data.video.decode import SUFFIXES

#: Seconds of a segment of DiDeMo, whose moments are runs of segments.
_SEGMENT = 5.0
Found = Callable[[str], Path]  #: the file of a video, by its name or its name without the ending


def published(where: Path) -> VideoData | None:
    """The collection whose annotations a file, or the files of a folder, hold; None where they are of no such layout.

    Videos are looked for by their name in the annotations' folder and all that are below it.

    Raises:
        AbridgedError: a file cannot be read, or as `VideoData.of`.
    """
    files = [where] if where.is_file() else sorted(where.glob("*")) if where.is_dir() else []
    readers = {path: reader for path in files if (reader := _reader(path)) is not None}
    if not readers:
        return None
    folder = where if where.is_dir() else where.parent
    there = {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES}

    def found(name: str) -> Path:
        stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
        return there.get(stem, folder / name)

    parts: dict[str, list[Clip]] = {"train": [], "validation": [], "test": []}
    for path, reader in readers.items():
        words = words_of_path(Path(path.name))
        named = next((split for split, names in SPLITS.items() if words & names), "train")
        if where.is_file():
            named = "train"  # one file is all there is
        try:
            for part, clip in reader(path, found):
                parts[part or named].append(clip)
        except (KeyError, TypeError, ValueError, IndexError, OSError, csv.Error) as error:
            raise AbridgedError(f"cannot read the videos of {path}: {type(error).__name__} {error}") from error
    tested = {clip.path for clip in parts["test"]}
    for part in ("train", "validation"):  # MSR-VTT's test part 1k-A is within what the other file holds
        parts[part] = [clip for clip in parts[part] if clip.path not in tested]
    if not parts["train"]:
        parts = {"train": parts["validation"] + parts["test"], "validation": [], "test": []}
    return VideoData.of(str(where), {part: [(str(clip.path), clip) for clip in some] for part, some in parts.items()})


def _reader(path: Path) -> Callable[[Path, Found], Iterator[tuple[str | None, Clip]]] | None:
    """What reads the layout of a file, as its first line or its first entry tells."""
    try:
        if path.suffix in (".csv", ".jsonl"):
            with path.open(encoding="utf-8-sig", errors="replace") as lines:
                head = lines.readline(1 << 20)
        content = _json(path) if path.suffix == ".json" else None
    except (OSError, AbridgedError):  # whatever it is, it is none of these
        return None
    if path.suffix == ".csv":
        return _msr_vtt_test if {"vid_key", "video_id", "sentence"} <= set(_cells(head)) else None
    if path.suffix == ".jsonl":
        return _qv_highlights if all(f'"{key}"' in head for key in ("qid", "query", "vid")) else None
    if isinstance(content, dict):
        return _msr_vtt if {"videos", "sentences"} <= set(content) else None
    first = content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}
    if {"description", "times", "video"} <= set(first):
        return _didemo
    return _msvd if set(first) == {"caption", "id"} else None


def _msr_vtt_test(path: Path, found: Found) -> Iterator[tuple[str | None, Clip]]:
    with open_text(path, newline="") as lines:
        head = lines.readline()
        for cells in csv.reader(lines, delimiter=";" if ";" in head else ","):
            row = dict(zip(_cells(head), cells, strict=True))
            yield None, Clip(found(row["video_id"]), (row["sentence"],))


def _msr_vtt(path: Path, found: Found) -> Iterator[tuple[str | None, Clip]]:
    content = _json(path)
    captions: dict[str, list[str]] = {}
    for one in content["sentences"]:
        captions.setdefault(one["video_id"], []).append(one["caption"])
    parts = {"validate": "validation"}
    with_test = any(_reader(other) is _msr_vtt_test for other in path.parent.glob("*.csv"))
    for video in content["videos"]:
        part = video.get("split", "train")
        # Beside the test part 1k-A all other videos are to train on.
        yield (
            "train" if with_test else parts.get(part, part),
            Clip(found(video["video_id"]), tuple(captions.get(video["video_id"], ()))),
        )


def _msvd(path: Path, found: Found) -> Iterator[tuple[str | None, Clip]]:
    for one in _json(path):
        yield None, Clip(found(one["id"]), tuple(one["caption"]))


def _didemo(path: Path, found: Found) -> Iterator[tuple[str | None, Clip]]:
    for one in _json(path):
        # Several people said when: what most of them said, the shorter of two.
        votes = Counter(map(tuple, one["times"])).most_common()
        first, last = min((times for times, n in votes if n == votes[0][1]), key=lambda t: (t[1] - t[0], t))
        moment = (first * _SEGMENT, (last + 1) * _SEGMENT)
        yield None, Clip(found(one["video"]), (one["description"],), moments=(moment,))


def _qv_highlights(path: Path, found: Found) -> Iterator[tuple[str | None, Clip]]:
    with open_text(path) as lines:
        for one in map(parse_json, filter(str.strip, lines)):
            moments = tuple((float(a), float(b)) for a, b in one.get("relevant_windows", ()))
            yield None, Clip(found(one["vid"]), (one["query"],), moments=moments)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().replace(";", ",").split(",")]


def _json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise AbridgedError(f"cannot read {path}: {error}") from error

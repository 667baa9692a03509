"""Videos with captions or questions: what a person's rows, folder or a published collection come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of, read_text
from abridged.data.dataset import PARTS, Dataset
from abridged.data.rows import SPLITS, Parts, Row, by_split
from abridged.data.text import VALIDATION_SHARE
from abridged.data.video.decode import SUFFIXES

#: Columns that are taken for these where a person names none, the first that is there.
VIDEO = ("video", "video_path", "path", "file", "clip")
CAPTION = ("caption", "captions", "sentence", "description", "query", "text", "label")


@dataclass(frozen=True)
class Clip:
    """A stretch of a video and what is said of it.

    Attributes:
        path: of the file.
        captions: each describes all of it.
        start, end: of the stretch, in seconds; None = the end of the file.
        moments: stretches within it, in seconds, that the captions are of; none = they are of all of it.
        frame_captions: of as many equal parts of it, in order.
        questions: each with its answer.
    """

    path: Path
    captions: tuple[str, ...] = ()
    start: float = 0.0
    end: float | None = None
    moments: tuple[tuple[float, float], ...] = ()
    frame_captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class VideoData(Dataset):
    """Three parts; of what came without a validation part the last twentieth of the videos is held out."""

    kind: ClassVar[str] = "videos"
    holds: ClassVar[str] = "videos"

    name: str
    train: list[Clip]
    validation: list[Clip]
    test: list[Clip]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: bool = True
    read: str = ""

    @property
    def words(self) -> str:
        return "\n".join(text for clip in self.train for text in _texts(clip))

    def _more(self) -> str:
        clips = [clip for part in PARTS for clip in getattr(self, part)]
        kinds = {"captions": any(c.captions for c in clips), "questions": any(c.questions for c in clips)}
        return " with " + " and ".join(kind for kind, there in kinds.items() if there)

    @property
    def has_captions(self) -> bool:
        """Whether clips are described, rather than asked about alone."""
        return any(clip.captions for clip in self.train)

    def as_videos(self) -> VideoData:
        return self

    @classmethod
    def of(cls, name: str, parts: Mapping[str, Sequence[tuple[str, Clip]]]) -> VideoData:
        """Of clips by part, each behind the place where it stands; those of one stretch are put together.

        Raises:
            AbridgedError: no file of them is there, or nothing is said of any.
        """
        every = [clip for some in parts.values() for _, clip in some]
        there = {path for path in {clip.path for clip in every} if path.is_file()}
        if not there:
            raise AbridgedError(
                f"none of the videos of '{name}' is there{f', such as {every[0].path}' if every else ''}"
            )
        kept: dict[str, list[Clip]] = {split: [] for split in PARTS}
        left_out: dict[str, list[str]] = {}
        for split, some in parts.items():
            for place, clip in some:
                if clip.path in there and _texts(clip):
                    kept[split].append(clip)
                else:
                    why = "without a caption" if clip.path in there else "without their video"
                    left_out.setdefault(why, []).append(place)
        if not any(kept.values()):
            raise AbridgedError(f"nothing is said of any video of '{name}': give captions, or questions with answers")
        clips = {split: _gathered(some) for split, some in kept.items()}
        came_split = bool(clips["validation"] or clips["test"])
        if not clips["validation"]:
            videos = list(dict.fromkeys(clip.path for clip in clips["train"]))
            count = max(1, round(len(videos) * VALIDATION_SHARE))
            held = set(videos[-count:] if len(videos) > 1 or not clips["test"] else ())  # the only one is learned from
            clips["validation"] = [clip for clip in clips["train"] if clip.path in held]
            clips["train"] = [clip for clip in clips["train"] if clip.path not in held]
        tested = clips["test"] or clips["validation"]
        return cls(name, clips["train"], clips["validation"] or tested, tested, left_out, came_split)

    def paragraphs(self) -> VideoData:
        """All captions of a file as one, in order: how DiDeMo is used for retrieval (Zhang et al., ECCV 2018)."""

        def joined(clips: list[Clip]) -> list[Clip]:
            texts: dict[Path, list[str]] = {}
            for clip in clips:
                texts.setdefault(clip.path, []).extend(clip.captions)
            return [Clip(path, (" ".join(some),)) for path, some in texts.items()]

        validation = joined(self.validation)
        test = joined(self.test) if self.has_test else validation
        return replace(self, train=joined(self.train), validation=validation, test=test)


def holds_videos(first: Row | None, columns: tuple[str, ...] | None) -> bool:
    """Whether rows are of videos: where one names a file that is called like a video, or videos are asked for."""
    if first is None:
        return False
    named = columns[0] if columns else next((name for name in VIDEO if name in first), None)
    value = first.get(named) if named else None
    return isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES


def of_rows(name: str, parts: Parts, folder: Path, columns: tuple[str, ...] | None) -> tuple[VideoData, list[str]]:
    """The videos that rows name, by a path of its own or from `folder` on, and the columns that were read.

    Args:
        columns: (video, caption) or (video, question, answer); None = as they are called in `VIDEO` and `CAPTION`, or
            `question` and `answer`. `start`, `end` (seconds) and `frame_captions` are read where they are there.

    Raises:
        AbridgedError: a column is missing, `start` or `end` is no number, or as `VideoData.of`.
    """
    first = next(row for some in parts.values() for row in some)
    video = columns[0] if columns else next((name for name in VIDEO if name in first), "")
    asked = columns is not None and len(columns) == 3
    question, answer = (columns[1], columns[2]) if columns and asked else ("question", "answer")
    caption = columns[1] if columns and not asked else next((name for name in CAPTION if name in first), None)
    if not video or (caption is None and question not in first):
        raise AbridgedError(
            f"'{name}' has the columns {', '.join(map(str, first))}: say which are the video and its caption, as in "
            "--columns video,caption"
        )

    def clip(row: Row) -> Clip:
        asks, says = row.text(question), row.text(answer)
        try:
            start, end = (float(text) if (text := row.text(key)) else None for key in ("start", "end"))
        except ValueError as error:
            raise AbridgedError(f"{row.place} has a start or an end that is no number of seconds") from error
        return Clip(
            path=folder / row.text(video),
            captions=() if asked or caption is None else _strings(row, caption),
            start=start or 0.0,
            end=end,
            frame_captions=_strings(row, "frame_captions"),
            questions=((asks, says),) if asks and says else (),
        )

    read = [video, *([question, answer] if question in first else []), "start", "end", "frame_captions"]
    made = {split: [(row.place, clip(row)) for row in some] for split, some in parts.items()}
    return VideoData.of(name, made), [*read, *([] if asked or caption is None else [caption])]


def of_folder(folder: Path) -> VideoData | None:
    """The videos of a folder: described by the text file of the same name beside each, else, in folders of their own,
    by that folder's name (as actions are), else by their own. None where there is no video."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        return None
    parts_of = {folder, *(folder / word for words in SPLITS.values() for word in words)}

    def caption(path: Path) -> tuple[str, ...]:
        beside = path.with_suffix(".txt")
        if beside.is_file():
            return tuple(line.strip() for line in lines_of(read_text(beside)) if line.strip())
        named = path.stem if path.parent in parts_of else path.parent.name
        return (" ".join(named.replace("_", " ").replace("-", " ").split()),)

    split = by_split(folder, paths)
    return VideoData.of(
        str(folder), {part: [(str(path), Clip(path, caption(path))) for path in some] for part, some in split.items()}
    )


def _gathered(clips: Iterable[Clip]) -> list[Clip]:
    """One clip for all that is said of a stretch; what is said of moments in it stays apart."""
    found: dict[Any, Clip] = {}
    for clip in clips:
        key = (clip.path, clip.start, clip.end, clip.moments, clip.captions if clip.moments else None)
        same = found.get(key)
        found[key] = clip if same is None else replace(
            same,
            captions=tuple(dict.fromkeys(same.captions + clip.captions)),
            questions=same.questions + clip.questions,
            frame_captions=same.frame_captions or clip.frame_captions,
        )  # fmt: skip
    return list(found.values())


def _texts(clip: Clip) -> list[str]:
    return [*clip.captions, *(text for pair in clip.questions for text in pair), *clip.frame_captions]


def _strings(row: Row, column: str) -> tuple[str, ...]:
    """The text, or the texts, of a cell."""
    value = row.get(column)
    some = value if isinstance(value, (list, tuple)) else [row.text(column)]
    return tuple(text.strip() for text in some if isinstance(text, str) and text.strip())

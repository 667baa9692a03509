"""Finds moments in videos by a text, several in order, a picture, or a clip; and passages in texts by a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.data.video.decode import VideoError, sample
from abridged.evaluation.vectors import shortened, top
from abridged.index import moments
from abridged.index.build import index_of
from abridged.index.embedder import Embedder, Matches, open_embedder
from abridged.index.passages import Document, TextError, read_document
from abridged.index.readers import READERS, VIDEOS
from abridged.index.store import File, NoIndex, Store

#: Windows that are looked at for each hit that is wanted, and how many times as many are chosen by bits.
_CANDIDATES, _BY_BITS = 20, 10
#: Contents whose frames are aligned with events in order; seconds that an event takes, and between two at most.
_ALIGNED, _EVENT, _APART = 50, 2.0, 60.0


@dataclass(frozen=True)
class Hit:
    """A moment: seconds `start` to `end` of the file at `path`, the `content` that it is in, and how well it fits."""

    path: str
    start: float
    end: float
    score: float
    content: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Passage:
    """A passage: `line` to `last_line` of the file at `path`, what it says, and how well it fits. Lines and text are
    None where the file is not what it was when it was indexed."""

    path: str
    line: int | None
    last_line: int | None
    text: str | None
    score: float
    content: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Where:
    """Where to look: files `under` a folder (from the indexed one on), changed `since` (seconds since 1970)."""

    under: str | None = None
    since: float | None = None


Hits = list[Hit | Passage]


class Searcher:
    """An index in memory, and the model that made it."""

    def __init__(
        self,
        model: str | Path,
        folder: Path,
        file: Path | None = None,
        embedder: Callable[[str | Path], Embedder] = open_embedder,
    ) -> None:
        """Open the index of a folder that the model made.

        Raises:
            AbridgedError: there is none, it was made by another model, or the model cannot be loaded.
        """
        self.folder = Path(resolve(folder))
        found = index_of(model, self.folder, file)
        if found is None:
            raise self._none(model, file)
        self.store, self.reader = Store(found.file), found.reader
        self.windows, self.paths = self.store.windows(), self.store.paths()
        self.embedder: Any = embedder(model)
        if self.embedder.width < self.store.width:
            raise AbridgedError(
                f"{found.file} holds vectors of {self.store.width:,} numbers, and {model} makes such of "
                f"{self.embedder.width:,}: make another index with --index FILE"
            )

    def _none(self, model: str | Path, file: Path | None) -> AbridgedError:
        there = [reader.index for reader in READERS.values() if file is None and (self.folder / reader.index).is_file()]
        if there:
            return AbridgedError(
                f"{' and '.join(there)} in {self.folder} {'were' if len(there) > 1 else 'was'} made by another model "
                f"than {model}: use that model, or make another index with --index FILE"
            )
        return NoIndex(f"there is no index {file or f'in {self.folder}'}: make it with `abridged index MODEL FOLDER`")

    def text(
        self, text: str, then: Sequence[str] = (), limit: int = 10, where: Where | None = None, rerank: int = 0
    ) -> Hits:
        """Moments that a text describes; with `then`, stretches in which it comes first and those after it, in order.
        Passages that answer it, or are like it.

        Args:
            rerank: so many hits are looked at again, frames and text together, where the model can do that.

        Raises:
            AbridgedError: a text is empty; there is a `then` for texts.
        """
        if not all(one.strip() for one in (text, *then)):
            raise AbridgedError("there is nothing to search for: the text is empty")
        if then:
            self._only_videos("what comes after it")
            return list(self._in_order([text, *then], limit, where))
        hits = self.near(self._vector(text), max(limit, rerank), where)
        if rerank and isinstance(self.embedder, Matches):
            hits[:rerank] = sorted((self._matched(hit, text) for hit in hits[:rerank]), key=lambda hit: -hit.score)
        read: dict[str, Document | None] = {}
        return [hit if self.reader is VIDEOS else self._passage(hit, read) for hit in hits[:limit]]

    @property
    def reads(self) -> list[str]:
        """What is in the index."""
        return [self.reader.name]

    def file(self, content: int) -> Path | None:
        """A video by the number of its content; None where it is none."""
        names = self.paths.get(content) if self.reader is VIDEOS else None
        return self.folder / names[0][0] if names else None

    def _only_videos(self, what: str) -> None:
        if self.reader is not VIDEOS:
            raise AbridgedError(f"{what} is searched for in videos, and {self.store.file} is an index of texts")

    def _vector(self, text: str) -> np.ndarray:
        return shortened(self.embedder.embed_text(text), self.store.width)

    def picture(self, path: Path, limit: int = 10, where: Where | None = None) -> list[Hit]:
        """Moments that look like a picture.

        Raises:
            AbridgedError: it cannot be read.
        """
        from PIL import Image, UnidentifiedImageError

        self._only_videos("a picture")
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise AbridgedError(f"{path}: cannot be read as a picture ({error})") from error
        return self._like(pixels[None], limit, where)

    def clip(self, path: Path, limit: int = 10, where: Where | None = None) -> list[Hit]:
        """Moments that look like a clip.

        Raises:
            VideoError: it cannot be read.
        """
        self._only_videos("a clip")
        return self._like(sample(path, self.embedder.frames, side=self.embedder.side), limit, where)

    def _like(self, frames: np.ndarray, limit: int, where: Where | None) -> list[Hit]:
        return self.near(shortened(self.embedder.embed_frames(frames)[1], self.store.width), limit, where)

    def near(self, query: np.ndarray, limit: int, where: Where | None = None) -> list[Hit]:
        """Stretches whose vectors are near the unit vector `query`."""
        scores, usual = self._scores(query, where)
        count = _CANDIDATES * limit
        best = self._exact(query, scores, top(scores, _BY_BITS * count), count)
        found = []
        # A moment is as good as its best window: of more files than moments are wanted, the worse ones have none.
        for content, mine in self._by_content(best)[:limit]:
            for start, end, score in self.reader.merge(self.windows.spans[mine], scores[mine], usual):
                found.append(self._hit(content, start, end, score, where))
        found.sort(key=lambda hit: -hit.score)
        return [self._tight(hit, query, usual) for hit in found[:limit]]

    def _tight(self, hit: Hit, query: np.ndarray, usual: float) -> Hit:
        """The same without frames at its ends that are nothing of the kind."""
        places, parts = self.store.parts(hit.content, hit.start, hit.end)
        if len(places) < 2:
            return hit
        first, after = moments.tighten(parts @ query, usual)
        end = float(places[after]) if after < len(places) else hit.end
        return replace(hit, start=float(places[first]) if first else hit.start, end=end)

    def _scores(self, query: np.ndarray, where: Where | None) -> tuple[np.ndarray, float]:
        """(windows,) cosines, minus infinity outside of `where`, and what is usual among the others."""
        scores = self.windows.matrix.scores(query)
        usual = float(np.median(scores)) if len(scores) else 0.0
        if where is not None and where != Where():
            inside = [content for content in self.paths if self._path(content, where) is not None]
            scores[~np.isin(self.windows.contents, inside)] = -np.inf
        return scores, usual

    def _exact(self, query: np.ndarray, scores: np.ndarray, best: np.ndarray, count: int) -> np.ndarray:
        """The `count` best of the `best`, whose `scores` are made anew where only bits are in memory."""
        if self.windows.matrix.kind == "binary":
            best = best[top(self.windows.matrix.signs(query, best), count)]
            of = dict(self._by_content(best))
            first = self.windows.first
            for content, exact in self.store.exact({c: mine - first[c] for c, mine in of.items()}):
                scores[of[content]] = exact @ query
        return best[top(scores[best], count)]

    def _by_content(self, numbers: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Windows by what they are in, in the order of the first of each."""
        of = self.windows.contents[numbers]
        return [(content, numbers[of == content]) for content in dict.fromkeys(of.tolist())]

    def _in_order(self, texts: list[str], limit: int, where: Where | None) -> list[Hit]:
        """Events one after the other: the alignment of their frame scores, averaged with how near the sentence of all
        of them is to the windows there, which is where a model that was taught order can say so."""
        queries = [self._vector(text) for text in texts]
        whole = self._vector(", then ".join(texts))
        every = [self._scores(query, where)[0] for query in (*queries, whole)]
        contents = np.unique(self.windows.contents)
        if not len(contents):
            return []
        starts = np.searchsorted(self.windows.contents, contents)
        bests = sum(np.maximum.reduceat(scores, starts) for scores in every)
        found = []
        for content in contents[top(np.asarray(bests), max(_ALIGNED, limit))].tolist():
            places, parts = self.store.parts(content)
            step = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
            length = max(1, round(_EVENT / step))
            score, firsts = moments.align(np.stack(queries) @ parts.T, length, round(_APART / step))
            if not firsts:
                continue
            length = max(1, min(length, len(places) // len(texts)))
            start, end = float(places[firsts[0]]), float(places[firsts[-1] + length - 1]) + step
            mine = self.windows.contents == content
            spans = self.windows.spans[mine]
            overlap = np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], start)
            union = np.maximum(spans[:, 1], end) - np.minimum(spans[:, 0], start)
            told = every[-1][mine][np.argmax(overlap / union)]  # the window that is most like the stretch
            found.append(self._hit(content, start, end, (score + float(told)) / 2, where))
        return sorted(found, key=lambda hit: -hit.score)[:limit]

    def _matched(self, hit: Hit, text: str) -> Hit:
        assert isinstance(self.embedder, Matches)
        with suppress(VideoError):  # it went away meanwhile: the hit stays where it is
            frames = sample(self.folder / hit.path, self.embedder.frames, hit.start, hit.end, self.embedder.side)
            return replace(hit, score=hit.score + self.embedder.match(frames, text))
        return hit

    def _passage(self, hit: Hit, read: dict[str, Document | None]) -> Passage:
        """Where in its file a hit is, and what it says there; files that were read are kept in `read`."""
        if hit.path not in read:
            read[hit.path] = self._document(hit.path)
        document, line, last, text = read[hit.path], None, None, None
        if document is not None:
            start, end = int(hit.start), int(hit.end)
            (line, last), text = document.place(start, end), document.text[start:end]
        return Passage(hit.path, line, last, text, hit.score, hit.content)

    def _document(self, name: str) -> Document | None:
        """A file, if it is as it was when it was indexed."""
        with suppress(OSError, TextError):
            stat, seen = (self.folder / name).stat(), self._files[name]
            if (stat.st_size, stat.st_mtime_ns) == (seen.size, seen.modified):
                return read_document(self.folder / name)
        return None

    @cached_property
    def _files(self) -> dict[str, File]:
        return self.store.files()

    def _hit(self, content: int, start: float, end: float, score: float, where: Where | None) -> Hit:
        return Hit(self._path(content, where or Where()) or "", start, end, score, content)

    def _path(self, content: int, where: Where) -> str | None:
        """The first file of a content that is where one looks."""
        under = None if where.under in (None, "", ".") else f"{str(where.under).strip('/').removeprefix('./')}/"
        for path, modified in self.paths.get(content, ()):
            if (under is None or path.startswith(under)) and (where.since is None or modified / 1e9 >= where.since):
                return path
        return None


class Together:
    """Several indexes of a folder, each with its model, searched at once.

    The best of each take turns: what a cosine is worth, one model's does not say of another's.
    """

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        self.searchers = searchers

    def text(
        self, text: str, then: Sequence[str] = (), limit: int = 10, where: Where | None = None, rerank: int = 0
    ) -> Hits:
        """See `Searcher.text`; with `then`, of videos alone."""
        asked = [one for one in self.searchers if one.reader is VIDEOS or not then] or self.searchers
        found = [one.text(text, then, limit, where, rerank) for one in asked]
        return [hit for hit in chain.from_iterable(zip_longest(*found)) if hit is not None][:limit]

    @property
    def reads(self) -> list[str]:
        """See `Searcher.reads`."""
        return [what for one in self.searchers for what in one.reads]

    def file(self, content: int) -> Path | None:
        """See `Searcher.file`."""
        return next((path for one in self.searchers if (path := one.file(content)) is not None), None)

"""What a report shows of clips: their frames, whom they are like, and what is mistaken for its opposite."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from abridged.data.video.clips import Clip
from abridged.data.video.events import other_direction, other_order, turned_words
from abridged.evaluation.retrieval import preferred
from abridged.evaluation.video_vectors import Found, clip_vectors
from abridged.report.data import Confusion, Strip, VideoPicture

#: Clips whose frames are shown; whose similarities are drawn; which are turned around at most.
STRIPS, DRAWN, TURNED = 4, 24, 400
#: Rows of the table of what is mistaken: those with the most captions.
ROWS = 14
#: Pixels of a frame at most.
_SIDE = 160

Vectors = Callable[[Any, Sequence[str]], np.ndarray]  #: of texts, by a model: (n, d)


def video_picture(
    models: Mapping[str, Any], clips: Sequence[Clip], pictures: Any, vectors: Vectors
) -> VideoPicture | None:
    """How several models see clips with captions; None where there are none.

    Args:
        pictures: a task's `Pictures`.
    """
    clips = [clip for clip in clips if clip.captions and not clip.moments][:TURNED]
    if not clips:
        return None
    captions = [clip.captions[0] for clip in clips]
    found = {name: clip_vectors(model, partial(pictures.of, clips), len(clips)) for name, model in models.items()}
    texts = {name: vectors(model, captions[:DRAWN]) for name, model in models.items()}
    own = [[text in clip.captions for clip in clips[:DRAWN]] for text in captions[:DRAWN]]
    return VideoPicture(
        strips=[
            Strip(
                captions[i],
                [jpeg(frame) for frame in pictures.cache.sample(clips[i], pictures.frames, pictures.side)],
                {name: found[name].frames[i] @ texts[name][i] for name in models},
            )
            for i in range(min(STRIPS, len(clips)))
        ],
        similarities={name: texts[name] @ found[name].videos[:DRAWN].T for name in models},
        own=np.array(own),
        confusions=confusions(models, captions, found, vectors),
    )


def confusions(
    models: Mapping[str, Any], captions: Sequence[str], found: Mapping[str, Found], vectors: Vectors
) -> list[Confusion]:
    """What of captions is mistaken for its opposite: words of direction, where one event is told of, and order."""
    by_what: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for number, caption in enumerate(captions):
        order, direction = other_order(caption), other_direction(caption)
        if order is not None:
            by_what.setdefault(("a, then b", "b, then a"), []).append((number, order))
        elif direction is not None:
            by_what.setdefault(turned_words(caption), []).append((number, direction))
    most = sorted(by_what, key=lambda what: -len(by_what[what]))[:ROWS]
    mistaken: dict[tuple[str, str], dict[str, float]] = {what: {} for what in most}
    for name, model in models.items():
        for what in most:
            numbers, turned = zip(*by_what[what], strict=True)
            videos = found[name].videos[list(numbers)]
            scores = [(videos * vectors(model, list(some))).sum(1) for some in ([captions[i] for i in numbers], turned)]
            mistaken[what][name] = 1 - preferred(*scores) / 100
    return [Confusion(*what, len(by_what[what]), mistaken[what]) for what in sorted(most)]


def jpeg(frame: np.ndarray) -> bytes:
    """A frame (height, width, 3) uint8, as small as a page needs it."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return written.getvalue()

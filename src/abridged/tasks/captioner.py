"""Captions of frames, written by a BLIP for captions where the data have none (EA-VTR's ECA, arXiv:2407.07478)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abridged.core.modes import evaluating
from abridged.core.settings import Events
from abridged.data.video.pixels import Squares
from abridged.evaluation.video_vectors import clip_vectors

if TYPE_CHECKING:
    from abridged.tasks.video_text import VideoText

#: What writes captions of pictures (n, height, width, 3) uint8, one each; another can stand in its place.
Captioner = Callable[[np.ndarray], list[str]]
#: Tokens of a caption at most.
_LONGEST = 20


def blip_captioner(name: str) -> Captioner:
    """BLIP for captions, by hub name or directory (Salesforce/blip-image-captioning-base).

    Raises:
        AbridgedError: it cannot be loaded.
    """
    from abridged.core.errors import AbridgedError
    from abridged.models.load import load_dense, load_tokenizer
    from abridged.models.video.config import MEAN, STD

    model: Any = load_dense(name)
    if not hasattr(model, "text_decoder") or not hasattr(model, "vision_model"):
        raise AbridgedError(f"{name} writes no captions of pictures: it is a {type(model).__name__}")
    tokenizer = load_tokenizer(name)
    squares = Squares(model.config.vision_config.image_size, MEAN, STD)

    def captions(pictures: np.ndarray) -> list[str]:
        with torch.inference_mode(), evaluating(model) as device:
            ids = model.generate(pixel_values=squares(pictures).to(device), max_new_tokens=_LONGEST)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return captions


def captions_of_frames(events: Events, task: VideoText, numbers: Sequence[int]) -> dict[int, list[str]]:
    """Captions of the sampled frames of training clips, by number; what is unlike its frame is "" and says nothing."""
    assert events.captioner is not None
    write, clips, pictures = blip_captioner(events.captioner), task.data.train, task.pictures
    found: dict[int, list[str]] = {}
    for number in numbers:
        shown = pictures.cache.sample(clips[number], pictures.frames, pictures.side)
        said = write(shown)
        frames = clip_vectors(task.model, lambda _, shown=shown: pictures(shown), 1).frames[0]  # type: ignore[misc]
        alike = (frames * task.vectors(task.model, said)).sum(1)
        found[number] = [
            text if value >= events.least_similarity else "" for text, value in zip(said, alike, strict=True)
        ]
    return found

"""Videos and texts in batches: what a model of both reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.data.padding import digest_of, mask_of, rectangle
from abridged.data.video.cache import FrameCache
from abridged.data.video.clips import Clip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Makes (frames, channels, height, width) FP32, as a model wants them, of (frames, height, width, 3) uint8.
Pixels = Callable[[np.ndarray], Tensor]


class Together(Order):
    """Questions about a clip by fours, so that it is encoded once for them; what they are, and when, is shuffled."""

    _TOGETHER = 4

    def __init__(self, clips: Sequence[int], seed: int) -> None:
        """`clips` (examples,) are the numbers of the clips that they are about."""
        super().__init__(len(clips), seed)
        self.clips = np.asarray(clips)
        self.counts = np.unique(self.clips, return_counts=True)[1]

    @property
    def clips_in_example(self) -> float:
        """How often a clip is encoded for a question."""
        return float(np.ceil(self.counts / self._TOGETHER).sum() / self.examples)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        order = super()._shuffled(generator)
        of_clip = order[torch.from_numpy(np.argsort(self.clips[order.numpy()], kind="stable"))]
        some = [few for own in of_clip.split(self.counts.tolist()) for few in own.split(self._TOGETHER)]
        return torch.cat([some[i] for i in torch.randperm(len(some), generator=generator).tolist()])


@dataclass(frozen=True)
class VideoTexts:
    """Each caption with its clip, or each question with its clip and its answer.

    A batch has `pixel_values` (B, frames, channels, height, width), `input_ids` and `attention_mask` (B, T) of the
    caption or the question. Its labels are (B,) int64, the clip's number, so that captions of one clip are known as
    such; of questions (B, S), the answer's tokens, -100 where padded. Questions about one clip share it:
    `pixel_values` are of the V clips that are asked about, and `videos` (B,) int64 says which of them a question means.
    """

    clips: Sequence[Clip]
    pairs: list[tuple[int, np.ndarray]]  #: the number of the clip, and token ids, special ones included
    answers: list[np.ndarray] | None
    pad: int
    frames: int
    side: int
    pixels: Pixels = field(repr=False)
    cache: FrameCache = field(repr=False, default_factory=FrameCache)

    @classmethod
    def captions(
        cls, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase, context: int, frames: int, side: int,
        pixels: Pixels, cache: FrameCache | None = None,
    ) -> VideoTexts:  # fmt: skip
        """Every caption of every clip, cut to `context` tokens; `frames` of each, scaled to `side` before `pixels`."""
        said = [(number, text) for number, clip in enumerate(clips) for text in clip.captions]
        return cls._of(clips, said, None, tokenizer, context, frames, side, pixels, cache)

    @classmethod
    def questions(
        cls, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase, context: int, frames: int, side: int,
        pixels: Pixels, cache: FrameCache | None = None,
    ) -> VideoTexts:  # fmt: skip
        """Every question of every clip with its answer."""
        asked = [(number, *pair) for number, clip in enumerate(clips) for pair in clip.questions]
        said = [(number, question) for number, question, _ in asked]
        return cls._of(clips, said, [a for *_, a in asked], tokenizer, context, frames, side, pixels, cache)

    @classmethod
    def _of(cls, clips, said, answers, tokenizer, context, frames, side, pixels, cache):
        def ids(texts: list[str]) -> list[np.ndarray]:
            found = tokenizer(texts, truncation=True, max_length=context, return_attention_mask=False)["input_ids"]
            return [np.asarray(one, dtype=np.int64) for one in found]

        pairs = list(zip((number for number, _ in said), ids([text for _, text in said]), strict=True)) if said else []
        pad = tokenizer.pad_token_id or 0
        return cls(clips, pairs, ids(answers) if answers else None, pad, frames, side, pixels, cache or FrameCache())

    @property
    def context(self) -> int:
        return max(len(ids) for ids in self.answers or [ids for _, ids in self.pairs])

    @property
    def tokens_in_example(self) -> float:
        return float(np.mean([len(ids) for _, ids in self.pairs]))

    @property
    def same_length(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index`, texts padded to the longest among them.

        Raises:
            VideoError: a file cannot be read.
        """
        numbers, rows = zip(*(self.pairs[i] for i in index.tolist()), strict=True)
        ids = rectangle(rows, self.pad)
        seen = {n: self.cache.sample(self.clips[n], self.frames, self.side) for n in dict.fromkeys(numbers)}
        shown = torch.stack([self.pixels(frames) for frames in seen.values()])
        places = {number: place for place, number in enumerate(seen)}
        videos = torch.tensor([places[number] for number in numbers])
        inputs = {"input_ids": ids, "attention_mask": mask_of(rows, ids)}
        if self.answers is None:
            return Batch({"pixel_values": shown[videos], **inputs}, torch.tensor(numbers), index)
        labels = rectangle([self.answers[i] for i in index.tolist()], -100)
        return Batch({"pixel_values": shown, "videos": videos, **inputs}, labels, index)

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them."""
        return Order(len(self), seed) if self.answers is None else self._together(seed)

    @property
    def clips_in_example(self) -> float:
        """How many clips are encoded for a text, on the average."""
        return 1.0 if self.answers is None else self._together().clips_in_example

    def _together(self, seed: int = 0) -> Together:
        return Together([number for number, _ in self.pairs], seed)

    def fingerprint(self) -> str:
        """A hash of what is said of which clip, and of how clips are sampled."""
        clips = [repr(self.clips[number]) for number, _ in self.pairs]
        head = hashlib.sha256(repr((clips, self.frames, self.side)).encode()).digest()
        return digest_of(head, (*(ids for _, ids in self.pairs), *(self.answers or ())))

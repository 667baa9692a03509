"""Videos and their captions: finding one by the other, and telling order, direction and moments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.core.measurement import Measured, Measurement
from abridged.core.settings import Events, TrainingSettings
from abridged.data.batch import Batch
from abridged.data.padding import mask_of, rectangle
from abridged.data.video.cache import FrameCache
from abridged.data.video.clips import Clip, VideoData
from abridged.data.video.decode import duration
from abridged.data.video.events import Captions, in_order, other_direction, other_order, thinned
from abridged.data.video.examples import VideoTexts
from abridged.data.video.pixels import Squares
from abridged.evaluation.retrieval import best_window, overlap, preferred, retrieval, stands_out, stretches
from abridged.evaluation.video_vectors import Found, clip_vectors, matched, text_vectors
from abridged.report.data import SampleGroup, VideoPicture
from abridged.tasks.base import Split, Task
from abridged.tasks.video_pictures import video_picture

#: Candidates of a text that are matched to it once more; pairs of clips that are joined to measure order.
CANDIDATES, JOINED = 16, 500
#: Frames that a file is sampled at where moments are sought in it.
WITHIN = 64
#: Tokens of a caption at most.
CAPTION = 64
_PICTURED = _SAMPLES = 4


class Pictures(Squares):
    """Frames of clips as a model wants them."""

    def __init__(self, model: Any) -> None:
        config = model.config
        super().__init__(int(config.image_size), config.image_mean, config.image_std)
        self.frames, self.cache = int(config.num_frames), FrameCache()
        self.tokens = self.frames * ((self.side // int(config.vision_config.patch_size)) ** 2 + 1)

    def of(self, clips: Sequence[Clip], number: int) -> Tensor:
        """(T, 3, side, side) of one of the clips."""
        return self(self.cache.sample(clips[number], self.frames, self.side))

    def texts(self, clips: Sequence[Clip], tokenizer: Any, context: int, questions: bool = False) -> VideoTexts:
        """Captions of clips, or questions about them."""
        made = VideoTexts.questions if questions else VideoTexts.captions
        return made(clips, tokenizer, context, self.frames, self.side, self, self.cache)


class VideoTask(Task):
    """Clips in three parts, for models that read frames."""

    data: VideoData

    def __init__(self, model: Any, tokenizer: Any, data: VideoData) -> None:
        super().__init__(model, tokenizer, data)
        self.pictures = Pictures(model)
        self.limit = min(int(tokenizer.model_max_length), self.limit, CAPTION)

    def validation(self, model: Any, settings: TrainingSettings) -> Callable[[], Measured]:
        per_clip = self.pictures.frames * self.pictures.side**2 / 256  # patches, of 16 by 16 pixels or so
        some = self.data.validation[: max(8, round(settings.evaluate_tokens / per_clip))]
        return lambda: self.measured(model, some, deep=False)

    def measure(self, model: Any, split: Split, settings: TrainingSettings) -> Measured:
        return self.measured(model, getattr(self.data, split))

    def _evaluate(self, model: Any, context: int | None, stride: int | None, limit: int | None) -> Measured:
        return self.measured(model, self.data.to_evaluate[:limit])

    @abstractmethod
    def measured(self, model: Any, clips: Sequence[Clip], deep: bool = True) -> Measured:
        """All that can be told of the clips; not `deep`, what is quickly told."""


class VideoText(VideoTask):
    """Clips with captions in three parts; measured by recall both ways, and by what tells time."""

    defaults: ClassVar[dict[str, Any]] = {
        "epochs": 6, "learning_rate": 1e-5, "schedule": "cosine", "weight_decay": 0.05, "keep": "best",
    }  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, data: VideoData) -> None:
        if not any(clip.captions for clip in data.train):
            raise AbridgedError(f"'{data.name}' has no captions, and a {type(model).__name__} finds videos by captions")
        super().__init__(model, tokenizer, data)
        self.model = model

    def _examples(self, settings: TrainingSettings) -> Captions:
        if settings.events is not None and settings.data_share < 1:
            raise AbridgedError("training.events reads all of the data: leave training.data_share at 1")
        limit = min(settings.context or self.limit, self.limit)
        return self._once((limit, repr(settings.events)), lambda: self._made(limit, settings.events))

    def _made(self, limit: int, events: Events | None) -> Captions:
        texts = self.pictures.texts(self.data.train, self.tokenizer, limit)
        return Captions(texts, self.tokenizer, limit, self.pictures.tokens, events, self._of_frames(events))

    def _of_frames(self, events: Events | None) -> dict[int, list[str]]:
        """By clip: a caption for each of the frames that are sampled, of those parts of the clip that have one."""
        if events is None or not events.frame_captions:
            return {}
        frames, found = self.pictures.frames, {}
        for number, clip in enumerate(self.data.train):
            if clip.frame_captions:
                places = ((np.arange(frames) + 0.5) * len(clip.frame_captions) / frames).astype(int)
                found[number] = [clip.frame_captions[place] for place in places]
        if events.captioner is not None:
            from abridged.tasks.captioner import captions_of_frames

            without = [number for number in range(len(self.data.train)) if number not in found]
            found |= captions_of_frames(events, self, without)
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "videos": len(self.data.train),
            "train_captions": sum(len(clip.captions) for clip in self.data.train),
            "frames": self.pictures.frames,
            "rows_dropped": self.data.dropped,
        }

    def measured(self, model: Any, clips: Sequence[Clip], deep: bool = True) -> Measured:
        """All that can be told of the clips; `deep` matches the nearest again, where the model can."""
        whole = [clip for clip in clips if clip.captions and not clip.moments]
        timed = [clip for clip in clips if clip.moments]
        if not whole:
            return Measured(self._moments(model, timed, True), clips=len(clips))
        texts = list(dict.fromkeys(caption for clip in whole for caption in clip.captions))
        found = clip_vectors(model, partial(self.pictures.of, whole), len(whole))
        vectors = self.vectors(model, texts)
        number = {text: i for i, text in enumerate(texts)}
        relevant = np.zeros((len(texts), len(whole)), dtype=bool)
        for i, clip in enumerate(whole):  # any clip of an equal caption is right
            relevant[[number[caption] for caption in clip.captions], i] = True
        similarity = vectors @ found.videos.T
        result = retrieval(similarity, relevant)
        if deep and hasattr(model, "match"):
            again = self.matched_again(model, whole, texts, similarity)
            result = result.also(matched=retrieval(again, relevant, "matched_", told=False))
        told = [*self._told(model, whole, found, deep)]
        if timed and deep:
            told += self._moments(model, timed)
        facts: dict[str, Any] = {"time": Measured(told)} if told else {}
        return result.also(**facts, clips=len(whole), captions=len(texts))

    def matched_again(self, model: Any, clips: Sequence[Clip], texts: Sequence[str], first: np.ndarray) -> np.ndarray:
        """(T, V) cosines, and matching logits on top among each text's nearest (BLIP's score), the rest far below."""
        nearest = np.argsort(-first, 1, kind="stable")[:, :CANDIDATES]
        pairs = [(i, int(j)) for i, row in enumerate(nearest) for j in row]
        logits = matched(model, partial(self.pictures.of, clips), self.tokenize, texts, pairs)
        again: np.ndarray = first - 1e4
        rows, columns = (np.array(side) for side in zip(*pairs, strict=True))
        again[rows, columns] = first[rows, columns] + logits
        return again

    def _told(self, model: Any, clips: Sequence[Clip], found: Found, deep: bool) -> list[Measurement]:
        """Accuracies of true sentences against those turned around: chance is 50 %."""
        told: list[Measurement] = []
        said = [(i, caption) for i, clip in enumerate(clips) for caption in clip.captions[:1]]
        for name, turned in (("direction", other_direction), ("order", other_order)):
            pairs = [(i, (true, false)) for i, true in said if (false := turned(true)) is not None]
            if name == "order" and not pairs and deep:
                told += self._joined_order(model, clips)
            elif pairs:
                videos = found.videos[[i for i, *_ in pairs]]
                scores = [(videos * self.vectors(model, [texts[k] for _, texts in pairs])).sum(1) for k in (0, 1)]
                told.append(Measurement(f"{name}_accuracy", preferred(*scores), name, headline=True))
                if deep and hasattr(model, "match"):
                    of = partial(self.pictures.of, clips)
                    logits = [
                        matched(
                            model,
                            of,
                            self.tokenize,
                            [texts[k] for _, texts in pairs],
                            [(n, p[0]) for n, p in enumerate(pairs)],
                        )
                        for k in (0, 1)
                    ]
                    told.append(Measurement(f"matched_{name}_accuracy", preferred(*logits), f"{name}, matched"))
        return told

    def _joined_order(self, model: Any, clips: Sequence[Clip]) -> list[Measurement]:
        """Test of Time's measure: neighbouring clips joined, with their sentences in the true and the other order."""
        of, half = partial(self.pictures.of, clips), self.pictures.frames // 2
        pairs = [
            (i, i + 1)
            for i in range(0, min(len(clips) - 1, 2 * JOINED), 2)
            if clips[i].captions[0] != clips[i + 1].captions[0]
        ]
        if not pairs:
            return []

        def joined(number: int) -> Tensor:
            first, second = (of(i) for i in pairs[number])
            return torch.cat([thinned(first, half), thinned(second, self.pictures.frames - half)])

        videos = clip_vectors(model, joined, len(pairs)).videos
        said = [[clips[i].captions[0] for i in pair] for pair in pairs]
        scores = [(videos * self.vectors(model, [in_order(*pair[::way]) for pair in said])).sum(1) for way in (1, -1)]
        return [Measurement("order_accuracy", preferred(*scores), "order", headline=True)]

    def _moments(self, model: Any, clips: Sequence[Clip], headline: bool = False) -> list[Measurement]:
        """Mean overlap of what is found of each text in its file with the nearest of the moments that it is of: of all
        stretches that which is most like it as a whole, and whose frames are more like it than those beside them; and,
        without looking at frames together, the best run of frames by their own cosines."""
        found: dict[str, list[float]] = {"": [], "frames_": []}
        frames = self.pictures.frames
        runs = stretches(WITHIN, frames)
        chosen = [start + ((np.arange(frames) + 0.5) * (stop - start) / frames).astype(int) for start, stop in runs]
        for path in dict.fromkeys(clip.path for clip in clips):
            shown = self.pictures(self.pictures.cache.sample(Clip(path), WITHIN, self.pictures.side))
            whole = clip_vectors(model, [shown[one] for one in chosen].__getitem__, len(runs))
            alone = clip_vectors(model, shown.unsqueeze(1).expand(-1, frames, -1, -1, -1).__getitem__, WITHIN)
            second = duration(path) / WITHIN
            for clip in (clip for clip in clips if clip.path == path):
                text = self.vectors(model, clip.captions[:1])[0]
                each = alone.frames[:, 0] @ text
                scores = whole.videos @ text + np.array([stands_out(each, *run) for run in runs])
                best = {"": runs[int(scores.argmax())], "frames_": best_window(each)}
                for kind, (first, last) in best.items():
                    window = first * second, last * second
                    found[kind].append(max(overlap(window, moment) for moment in clip.moments))
        return [
            Measurement("moment_overlap", 100 * float(np.mean(found[""])), "moments, mean IoU", headline=headline),
            Measurement("frames_moment_overlap", 100 * float(np.mean(found["frames_"])), "moments by frames, mean IoU"),
        ]

    def vectors(self, model: Any, texts: Sequence[str]) -> np.ndarray:
        """(n, d) of texts."""
        return text_vectors(model, self.tokenize, texts)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of texts."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]
        rows = [np.asarray(one, dtype=np.int64) for one in found]
        ids = rectangle(rows, self.tokenizer.pad_token_id or 0)
        return ids, mask_of(rows, ids)

    def picture(self) -> Batch:
        some = self.data.test[:_PICTURED]
        texts = self.pictures.texts(some, self.tokenizer, self.limit)
        return texts.batch(torch.arange(min(_PICTURED, len(texts))))

    def clips(self, models: Mapping[str, Any]) -> VideoPicture | None:
        return video_picture(models, self.data.test, self.pictures, self.vectors)

    def samples(self, models: Mapping[str, Any]) -> list[SampleGroup]:
        some = [clip for clip in self.data.test if clip.captions][: 8 * _SAMPLES]
        texts = [clip.captions[0] for clip in some[:_SAMPLES]]
        told: dict[str, list[str]] = {}
        for name, model in models.items():
            videos = clip_vectors(model, partial(self.pictures.of, some), len(some)).videos
            nearest = (self.vectors(model, texts) @ videos.T).argmax(1)
            told[name] = [some[i].captions[0] for i in nearest]
        return [
            SampleGroup.of(text, {"reference": text, **{name: said[i] for name, said in told.items()}}, label="Text")
            for i, text in enumerate(texts)
        ]

"""Clips joined into events in order, sentences that tell their order or direction, and both in batches.

EA-VTR (Ma et al., ECCV 2024, arXiv:2407.07478): transitions are added by joining clips (ETA), and content by a caption
for each frame (ECA). The sentences are those of Test of Time (Bagad et al., CVPR 2023, arXiv:2301.02074).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.core.errors import AbridgedError
from abridged.core.settings import Events
from abridged.data.batch import Batch
from abridged.data.examples import Order
from abridged.data.padding import mask_of, rectangle
from abridged.data.video.clips import Clip
from abridged.data.video.examples import VideoTexts

#: Sentences of two events, the first of which happens first.
TEMPLATES = ("{a}, then {b}", "{a}, and then {b}", "before {b}, {a}", "after {a}, {b}")
_THEN = re.compile(r",? (?:and )?then ")
#: Words that are each other's opposite in time or direction.
OPPOSITES = (
    ("left", "right"), ("up", "down"), ("upwards", "downwards"), ("upward", "downward"), ("upper", "lower"),
    ("into", "out of"), ("enters", "leaves"), ("entering", "leaving"), ("opens", "closes"), ("opening", "closing"),
    ("appears", "disappears"), ("appearing", "disappearing"), ("grows", "shrinks"), ("growing", "shrinking"),
    ("rises", "falls"), ("rising", "falling"), ("raises", "lowers"), ("pushes", "pulls"), ("forwards", "backwards"),
    ("forward", "backward"), ("towards", "away from"), ("clockwise", "anticlockwise"), ("starts", "stops"),
    ("puts on", "takes off"), ("puts in", "takes out"), ("comes", "goes"), ("arrives", "departs"),
    ("climbs up", "climbs down"), ("picks up", "puts down"),
)  # fmt: skip
_SWAPS = {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}
_WORDS = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(_SWAPS, key=len, reverse=True)))


def in_order(first: str, second: str, template: str = TEMPLATES[0]) -> str:
    """One sentence of two events."""
    return template.format(a=first.strip().rstrip("."), b=second.strip().rstrip("."))


def other_order(caption: str) -> str | None:
    """A sentence of two events with these in the other order; None where it tells of no two."""
    parts = _THEN.split(caption.strip().rstrip("."))
    return in_order(parts[1], parts[0]) if len(parts) == 2 and all(parts) else None


def other_direction(caption: str) -> str | None:
    """A sentence with every word of time or direction turned around; None where it has none."""
    found = _WORDS.sub(lambda match: _SWAPS[match.group()], caption)
    return found if found != caption else None


def backwards(caption: str) -> str | None:
    """What a clip shows that is played backwards: each event turned around, the last one first; None where a sentence
    tells of neither direction nor order."""
    turned = other_direction(caption) or caption
    found = other_order(turned) or turned
    return found if found != caption else None


def turned_words(caption: str) -> tuple[str, str]:
    """The words of time or direction in a sentence, and those that `other_direction` puts in their place."""
    found = _WORDS.findall(caption)
    return " ".join(found), " ".join(_SWAPS[word] for word in found)


def groups(clips: Sequence[Clip]) -> np.ndarray:
    """(clips,) int64: clips that share a caption have one number."""
    number = list(range(len(clips)))

    def root(i: int) -> int:
        while number[i] != i:
            i = number[i]
        return i

    seen: dict[str, int] = {}
    for i, clip in enumerate(clips):
        for caption in clip.captions:
            other = root(seen.setdefault(caption.lower().strip(), i))
            number[root(i)] = other
    return np.array([root(i) for i in range(len(clips))], dtype=np.int64)


#: Pictures (T, 3, H, W), what is said of them, and what is equal for equal texts; twice, the second in the other order.
Shown = tuple[Tensor, str, Hashable]
Twins = tuple[Shown, Shown]


class _Extent:
    """How much there is to read: texts, and tokens that each clip adds."""

    texts: VideoTexts
    seen: int

    @property
    def context(self) -> int:
        return self.texts.context

    @property
    def tokens_in_example(self) -> float:
        return self.texts.tokens_in_example + self.seen * self.texts.clips_in_example

    @property
    def same_length(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Captions(_Extent):
    """Captions with their clips, in turns with clips joined two by two and their twins in the other order.

    A batch's label is the number of the clip's group. Where frames have captions and these are asked for, it has
    `frame_input_ids` and `frame_attention_mask` (B, T, L).
    """

    texts: VideoTexts
    tokenizer: Any = field(repr=False)
    limit: int
    seen: int = 0  #: tokens of a clip
    events: Events | None = None
    frame_captions: Mapping[int, Sequence[str]] = field(default_factory=dict, repr=False)  #: by clip, one a frame
    _groups: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_groups", groups(self.texts.clips))

    def fingerprint(self) -> str:
        """A hash of all that batches depend on."""
        said = repr((self.events, sorted((number, *some) for number, some in self.frame_captions.items())))
        return f"{self.texts.fingerprint()}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def order(self, seed: int, batch_size: int) -> Order:
        """Batches of captions, and in turns with them those of joined clips, whose numbers are beyond the captions'."""
        if self.events is None:
            return Order(len(self), seed)
        order = Order(len(self), seed)
        if self.events.alike > 1:
            order = Alike(self, seed, batch_size, self.events.alike)
        share = self.events.joined
        return InTurns(order, Order(len(self), seed + 1), batch_size, share) if share else order

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index`, or the joined clips that stand beyond them."""
        if bool((index >= len(self)).all()):
            return self.joined(index - len(self), index)
        found = self.texts.batch(index)
        found = replace(found, labels=torch.from_numpy(self._groups[found.labels.numpy()]))
        if self.frame_captions and self.events is not None and self.events.frame_captions:
            numbers = [self.texts.pairs[i][0] for i in index.tolist()]
            found.inputs.update(self._captions_of(numbers))
        if self.events is not None and self.events.opposites:
            self._add_opposites(found)
        return found

    def _add_opposites(self, batch: Batch) -> None:
        """Texts turned around in direction and in order, (B, 2, L), beside a batch's own; the empty text where one
        tells of neither."""
        said = [self.caption(i) for i in batch.index.tolist()]
        rows = self._ids([turned or "" for text in said for turned in (other_direction(text), other_order(text))])
        ids = rectangle(rows, self.texts.pad)
        found = {"turned_input_ids": ids, "turned_attention_mask": mask_of(rows, ids)}
        own, length = batch.inputs["input_ids"].shape[1], ids.shape[1]
        for name, pad in (("input_ids", self.texts.pad), ("attention_mask", 0)):  # all texts of a batch are as long
            batch.inputs[name] = F.pad(batch.inputs[name], (0, max(0, length - own)), value=pad)
            turned = F.pad(found[f"turned_{name}"], (0, max(0, own - length)), value=pad)
            batch.inputs[f"turned_{name}"] = turned.view(len(said), 2, -1)

    def _captions_of(self, numbers: list[int]) -> dict[str, Tensor]:
        """Of clips: captions of their frames; a frame without one has the empty text."""
        empty = [""] * self.texts.frames
        said = [caption for number in numbers for caption in self.frame_captions.get(number, empty)]
        rows = self._ids(said)
        ids = rectangle(rows, self.texts.pad)
        shape = (len(numbers), self.texts.frames, -1)
        return {"frame_input_ids": ids.view(shape), "frame_attention_mask": mask_of(rows, ids).view(shape)}

    def _ids(self, said: Sequence[str]) -> list[np.ndarray]:
        found = self.tokenizer(list(said), truncation=True, max_length=self.limit)["input_ids"]
        return [np.asarray(one, dtype=np.int64) for one in found]

    def joined(self, examples: Tensor, index: Tensor) -> Batch:
        """Neighbours of `examples` joined: n videos of half of the frames of each, then their n twins. A share of them,
        where a sentence tells of direction or order, is the first clip alone, whose twin is played backwards.

        Raises:
            AbridgedError: there are fewer than two.
        """
        assert self.events is not None
        count = len(examples) // 2
        if not count:
            raise AbridgedError("clips are joined two by two: a pass needs a batch of two or more")
        pairs = examples[: 2 * count].view(2, count).T.tolist()
        alone = (torch.rand(count) < self.events.turned).tolist()
        kinds = torch.randint(len(TEMPLATES), (count,)).tolist()
        made = [
            (self._turned(first) if turned else None) or self._pair(first, second, TEMPLATES[kind])
            for (first, second), turned, kind in zip(pairs, alone, kinds, strict=True)
        ]
        videos, texts, what = zip(*(row[way] for way in (0, 1) for row in made), strict=True)
        numbers = {one: i for i, one in enumerate(dict.fromkeys(what))}
        rows = self._ids(texts)
        ids = rectangle(rows, self.texts.pad)
        inputs = {"pixel_values": torch.stack(videos), "input_ids": ids, "attention_mask": mask_of(rows, ids)}
        return Batch(inputs, torch.tensor([numbers[one] for one in what]), index[: 2 * count], twins=True)

    def _pair(self, first: int, second: int, template: str) -> Twins:
        """Two examples joined, and in the other order."""
        half = self.texts.frames // 2
        clips, said = zip(*((self.texts.pairs[i][0], self.caption(i)) for i in (first, second)), strict=True)
        shown = [self.pictures(clip) for clip in clips]
        ways = [
            (
                torch.cat([thinned(shown[a], half), thinned(shown[b], self.texts.frames - half)]),
                in_order(said[a], said[b], template),
                (int(self._groups[clips[a]]), int(self._groups[clips[b]])),
            )
            for a, b in ((0, 1), (1, 0))
        ]
        return ways[0], ways[1]

    def _turned(self, example: int) -> Twins | None:
        """An example, and played backwards; None where its text says nothing of time."""
        said = self.caption(example)
        turned = backwards(said)
        if turned is None:
            return None
        shown = self.pictures(self.texts.pairs[example][0])
        return (shown, said, said), (shown.flip(0), turned, turned)

    def caption(self, example: int) -> str:
        """The text of an example."""
        text: str = self.tokenizer.decode(self.texts.pairs[example][1], skip_special_tokens=True)
        return text

    def pictures(self, clip: int) -> Tensor:
        """(T, 3, H, W) of a clip."""
        texts = self.texts
        return texts.pixels(texts.cache.sample(texts.clips[clip], texts.frames, texts.side))


def thinned(pictures: Tensor, count: int) -> Tensor:
    """`count` of the pictures (T, …), evenly spread."""
    return pictures[((torch.arange(count) + 0.5) * len(pictures) / count).long()]


class InTurns(Order):
    """Steps of examples and steps of others, numbered beyond them, in turns: a `share` of the steps are the others'."""

    def __init__(self, order: Order, others: Order, batch_size: int, share: float) -> None:
        super().__init__(order.examples, order.seed)
        self.first, self.others, self.step, self.share = order, others, batch_size, share

    def _at(self, position: int) -> Tensor:
        step, place = divmod(position, self.step)
        before, after = int(step * self.share), int((step + 1) * self.share)
        if after > before:
            return self.others._at(before * self.step + place) + self.examples
        return self.first._at((step - before) * self.step + place)


class Alike(Order):
    """Batches in which `count` examples each have captions near each other's, so that details must tell them apart.

    The first of each are in a shuffled order; the others are drawn among its nearest by words in common, rare words
    counting more (inverse document frequency).
    """

    _NEAREST = 32  #: among which is drawn

    def __init__(self, captions: Captions, seed: int, batch_size: int, count: int) -> None:
        super().__init__(len(captions), seed)
        self.step, self.count = batch_size, count
        self.groups = captions._groups[[clip for clip, _ in captions.texts.pairs]]
        self.words = [np.unique(ids) for _, ids in captions.texts.pairs]
        every = np.concatenate(self.words)
        places = np.repeat(np.arange(len(self)), [len(words) for words in self.words])
        order = np.argsort(every, kind="stable")
        found, starts = np.unique(every[order], return_index=True)
        self.holding = dict(zip(found.tolist(), np.split(places[order], starts[1:]), strict=True))
        self._batch, self._chosen = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.examples

    def _at(self, position: int) -> Tensor:
        batch, place = divmod(position, self.step)
        if batch != self._batch:
            draw = np.random.default_rng((self.seed, batch))
            each = -(-self.step // self.count)
            firsts = [int(super(Alike, self)._at(batch * each + i)) for i in range(each)]
            chosen = np.concatenate([[first, *self.near(first, draw)] for first in firsts])
            self._batch, self._chosen = batch, torch.from_numpy(chosen)
        return self._chosen[place]

    def near(self, first: int, draw: np.random.Generator) -> np.ndarray:
        """Of what is near an example, count - 1 others of other groups, or any where there are not as many."""
        scores = np.zeros(len(self))
        for word in self.words[first].tolist():
            there = self.holding[word]
            scores[there] += np.log(len(self) / len(there))
        scores /= np.sqrt([len(words) for words in self.words])
        scores[self.groups == self.groups[first]] = -1
        nearest = np.argpartition(-scores, min(self._NEAREST, len(self) - 1))[: self._NEAREST]
        return draw.choice(nearest, self.count - 1, replace=len(nearest) < self.count - 1)


@dataclass(frozen=True)
class Answers(_Extent):
    """Questions about clips and their answers, which a decoder writes behind its first token."""

    texts: VideoTexts
    begin: int  #: the decoder's first token
    seen: int = 0  #: tokens of a clip

    def fingerprint(self) -> str:
        """A hash of all that batches depend on."""
        return self.texts.fingerprint()

    def order(self, seed: int, batch_size: int) -> Order:
        """The order in which training reads them."""
        return self.texts.order(seed, batch_size)

    def batch(self, index: Tensor) -> Batch:
        """Labels (B, A) are each next token of the answer, its end included."""
        found = self.texts.batch(index)
        read = found.labels.masked_fill(found.labels == -100, self.texts.pad)
        read[:, 0] = self.begin
        labels = torch.cat([found.labels[:, 1:], torch.full((len(read), 1), -100)], 1)
        inputs = {"decoder_input_ids": read, "decoder_attention_mask": (found.labels != -100).long()}
        return replace(found, inputs={**found.inputs, **inputs}, labels=labels)

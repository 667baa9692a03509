"""Clips joined in order, and sentences turned around."""

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.core.settings import Events
from abridged.data.examples import Order
from abridged.data.video.clips import Clip
from abridged.data.video.events import (
    Answers,
    Captions,
    InTurns,
    backwards,
    groups,
    in_order,
    other_direction,
    other_order,
    thinned,
)
from abridged.data.video.examples import VideoTexts


class Words:
    """A tokenizer of numbers: " 5 6" is [2, 5, 6, 3]."""

    pad_token_id = 0

    def __call__(self, texts, **options):
        return {
            "input_ids": [[2, *(int(w) for w in text.replace(",", " ").split() if w.isdigit()), 3] for text in texts]
        }

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(str(int(i)) for i in ids if i > 3)


class Numbers:
    """In place of a cache: frame t of clip n is 10 n + t everywhere."""

    def sample(self, clip, count, side):
        first = 10 * int(clip.path.name)
        return np.stack([np.full((2, 2, 3), first + t, dtype=np.uint8) for t in range(count)])


def pixels(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


def captions(tmp_path, events=None, said=(("5",), ("6",), ("7",), ("8",)), **more):
    clips = [Clip(tmp_path / str(i), captions=texts) for i, texts in enumerate(said)]
    texts = VideoTexts.captions(clips, Words(), 16, 4, 2, pixels, Numbers())
    return Captions(texts, Words(), 16, 0, events, more)


def shown(batch):
    return batch.inputs["pixel_values"][:, :, 0, 0, 0].tolist()


def test_sentences_are_turned_around():
    assert in_order("A dog barks.", "a cat runs.", "before {b}, {a}") == "before a cat runs, A dog barks"
    assert other_order("a dog barks, then a cat runs") == "a cat runs, then a dog barks"
    assert other_order("a dog barks and then a cat runs.") == "a cat runs, then a dog barks"
    assert other_order("a dog barks") is None
    assert other_direction("it moves to the upper left") == "it moves to the lower right"
    assert other_direction("the gate opens") == "the gate closes"
    assert other_direction("a man walks out of the house") == "a man walks into the house"
    assert other_direction("leftover upset food") is None


def test_what_is_played_backwards_is_told_from_the_end():
    assert backwards("the gate opens, then a car enters") == "a car leaves, then the gate closes"
    assert backwards("a dog barks, then a cat runs") == "a cat runs, then a dog barks"
    assert backwards("a dog barks") is None


def test_clips_of_one_caption_are_one_group(tmp_path):
    said = [("a",), ("b", "A "), ("c",), ("b",)]
    found = groups([Clip(tmp_path / str(i), captions=texts) for i, texts in enumerate(said)])
    assert found[0] == found[1] == found[3] != found[2]


def test_joined_clips_and_their_twins_are_in_both_orders(tmp_path):
    examples = captions(tmp_path, Events(joined=0.5))
    torch.manual_seed(0)
    batch = examples.batch(torch.tensor([4, 6, 5, 7]))  # beyond the captions: clips 0, 2 and 1, 3
    assert batch.twins
    assert shown(batch) == [[1, 3, 11, 13], [21, 23, 31, 33], [11, 13, 1, 3], [31, 33, 21, 23]]
    said = [[i for i in row if i > 3] for row in batch.inputs["input_ids"].tolist()]
    for first, twin in ((0, 2), (1, 3)):
        assert said[first] == said[twin][::-1]
    assert len(set(batch.labels.tolist())) == 4
    with pytest.raises(AbridgedError, match="two by two"):
        examples.batch(torch.tensor([4]))


def test_twins_of_single_clips_are_played_backwards(tmp_path):
    class Said(Words):
        def __call__(self, texts, **options):
            texts = [text.replace("left", "8").replace("right", "9") for text in texts]
            return super().__call__(texts, **options)

        def decode(self, ids, skip_special_tokens=True):
            return super().decode(ids).replace("8", "left").replace("9", "right")

    examples = captions(tmp_path, Events(joined=0.5, turned=1.0), (("5 left",), ("5",), ("5 right",), ("6",)))
    object.__setattr__(examples, "tokenizer", Said())
    object.__setattr__(examples.texts, "pairs", [(0, [2, 5, 8, 3]), (1, [2, 5, 3]), (2, [2, 5, 9, 3]), (3, [2, 6, 3])])
    batch = examples.batch(torch.tensor([4, 6, 5, 7]))  # clips 0 and 2, each alone
    assert batch.twins
    assert shown(batch) == [[0, 1, 2, 3], [20, 21, 22, 23], [3, 2, 1, 0], [23, 22, 21, 20]]
    assert [row[1:3] for row in batch.inputs["input_ids"].tolist()] == [[5, 8], [5, 9], [5, 9], [5, 8]]
    assert batch.labels.tolist() == [0, 1, 1, 0]  # one sentence, said of two videos
    batch = examples.batch(torch.tensor([5, 7]))  # which tell of no direction: joined
    assert shown(batch) == [[11, 13, 31, 33], [31, 33, 11, 13]]


def test_captions_turned_around_come_beside_their_own(tmp_path):
    class Said(Words):
        """left is 8 and right is 9; ", then" is 7."""

        def __call__(self, texts, **options):
            named = (("left", "8"), ("right", "9"), (", then", " 7"))
            for word, number in named:
                texts = [text.replace(word, number) for text in texts]
            return super().__call__(texts, **options)

        def decode(self, ids, skip_special_tokens=True):
            return super().decode(ids).replace("8", "left").replace("9", "right").replace(" 7", ", then")

    examples = captions(tmp_path, Events(joined=0, opposites=True), (("5 left",), ("5",), ("5 left, then 6",)))
    object.__setattr__(examples, "tokenizer", Said())
    made = [(0, [2, 5, 8, 3]), (1, [2, 5, 3]), (2, [2, 5, 8, 7, 6, 3])]
    object.__setattr__(examples.texts, "pairs", made)
    given = examples.batch(torch.tensor([0, 1, 2])).inputs
    ids, mask = given["turned_input_ids"], given["turned_attention_mask"]
    assert ids.shape[-1] == given["input_ids"].shape[-1] == given["attention_mask"].shape[-1]
    told = [[[i for i, there in zip(*row, strict=True) if there] for row in zip(*pair, strict=True)]
            for pair in zip(ids.tolist(), mask.tolist(), strict=True)]  # fmt: skip
    assert told == [
        [[2, 5, 9, 3], [2, 3]],
        [[2, 3], [2, 3]],
        [[2, 5, 9, 7, 6, 3], [2, 6, 7, 5, 8, 3]],
    ]


def test_captions_near_each_other_are_read_together(tmp_path):
    said = tuple((f"{color} {kind} {way}",) for color in (10, 11, 12, 13) for kind in (20, 21) for way in range(30, 35))
    examples = captions(tmp_path, Events(joined=0, alike=2), said)
    order = examples.order(0, 4)
    in_common = []
    for step in range(20):
        chosen = order[4 * step : 4 * step + 4].tolist()
        assert chosen == examples.order(0, 4)[4 * step : 4 * step + 4].tolist()
        for a, b in (chosen[:2], chosen[2:]):
            assert a != b
            in_common.append(len(set(said[a][0].split()) & set(said[b][0].split())))
    assert np.mean(in_common) > 0.9
    assert sorted({int(order[i : i + 1]) for i in range(0, 80, 2)}) == list(range(40))  # each is the first once


def test_a_half_of_the_steps_reads_joined_clips_and_every_example_has_its_turn():
    order = InTurns(Order(6, 0), Order(6, 1), 2, 0.5)
    steps = [order[2 * i : 2 * i + 2].tolist() for i in range(12)]
    kinds = [{i >= 6 for i in step} for step in steps]
    assert kinds == [{i % 2 == 1} for i in range(12)]
    assert sorted(i for step in steps[::2][:3] for i in step) == list(range(6))
    assert sorted(i for step in steps[1::2][:3] for i in step) == list(range(6, 12))
    assert [order[2 * i : 2 * i + 2].tolist() for i in range(12)] == steps
    assert {i >= 6 for i in InTurns(Order(6, 0), Order(6, 1), 2, 0.25)[0:16].tolist()[:6]} == {False}


def test_captions_of_frames_come_with_the_clip(tmp_path):
    examples = captions(tmp_path, Events())
    object.__setattr__(examples, "frame_captions", {1: ["9", "10 11", "", "9"]})
    batch = examples.batch(torch.tensor([0, 1]))
    assert not batch.twins
    ids, mask = batch.inputs["frame_input_ids"], batch.inputs["frame_attention_mask"]
    assert ids.shape == mask.shape == (2, 4, 8)
    assert (ids * mask)[1, :, :4].tolist() == [[2, 9, 3, 0], [2, 10, 11, 3], [2, 3, 0, 0], [2, 9, 3, 0]]
    assert mask[0].sum(-1).tolist() == [2] * 4
    plain = captions(tmp_path, Events(frame_captions=False))
    assert "frame_input_ids" not in plain.batch(torch.tensor([1])).inputs
    assert examples.fingerprint() != captions(tmp_path).fingerprint()


def test_a_decoder_is_given_each_token_before_the_one_it_writes(tmp_path):
    clip = Clip(tmp_path / "1", questions=(("5 6", "7"), ("5", "8 9")))
    texts = VideoTexts.questions([clip], Words(), 16, 4, 2, pixels, Numbers())
    batch = Answers(texts, begin=1).batch(torch.tensor([0, 1]))
    read, mask = batch.inputs["decoder_input_ids"], batch.inputs["decoder_attention_mask"]
    assert (read * mask)[:, :4].tolist() == [[1, 7, 3, 0], [1, 8, 9, 3]]
    assert batch.labels[:, :4].tolist() == [[7, 3, -100, -100], [8, 9, 3, -100]]


def test_thinned_pictures_are_evenly_spread():
    assert thinned(torch.arange(8), 4).tolist() == [1, 3, 5, 7]
    assert thinned(torch.arange(5), 5).tolist() == list(range(5))

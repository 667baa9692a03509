"""Batches of clips and texts, and frames that are decoded once."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import videos
from abridged.data.video import cache as cache_module
from abridged.data.video.cache import FrameCache
from abridged.data.video.clips import Clip
from abridged.data.video.examples import VideoTexts
from videos import numbered, write


@pytest.fixture
def clips(tmp_path):
    first = write(tmp_path / "a.mp4", numbered(20))
    second = write(tmp_path / "b.mp4", numbered(20)[::-1])
    return [
        Clip(first, ("a line", "another line of it"), questions=(("which", "one"), ("of", "the same text"))),
        Clip(second, ("of the same text",), start=1.0),
    ]


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "cache")


def pixels(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    found = []
    sample = cache_module.sample
    monkeypatch.setattr(cache_module, "sample", lambda path, *rest: (found.append(path.name), sample(path, *rest))[1])
    return found


def test_each_caption_has_its_clip(clips, cache, tokenizer):
    examples = VideoTexts.captions(clips, tokenizer, 8, frames=4, side=16, pixels=pixels, cache=cache)
    assert len(examples) == 3
    batch = examples.batch(torch.tensor([2, 0, 1]))
    shown = batch.inputs["pixel_values"]
    assert shown.shape == (3, 4, 3, 16, 24)
    assert torch.equal(shown[1], shown[2])
    level = (shown[:, :, 0].flatten(2).median(-1).values * 255 - 19) / 4
    assert level.round().tolist() == [[8, 6, 3, 1], [2, 7, 12, 17], [2, 7, 12, 17]]
    assert batch.labels.tolist() == [1, 0, 0]
    assert batch.index.tolist() == [2, 0, 1]
    texts = [tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
             for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True)]  # fmt: skip
    assert [text.strip() for text in texts][1] == "a line"
    assert batch.inputs["input_ids"].shape[1] == 8
    assert batch.model_inputs.keys() == {"pixel_values", "input_ids", "attention_mask"}


def test_each_question_has_its_answer(clips, cache, tokenizer):
    examples = VideoTexts.questions(clips, tokenizer, 32, frames=2, side=16, pixels=pixels, cache=cache)
    batch = examples.batch(torch.tensor([0, 1]))
    answers = [tokenizer.decode(row[row != -100], skip_special_tokens=True).strip() for row in batch.labels]
    assert answers == ["one", "the same text"]
    assert (batch.labels[0] == -100).any()


def test_questions_about_one_clip_share_it(clips, cache, tokenizer):
    asked = [replace(clip, questions=tuple((f"which {i}?", "one") for i in range(count)))
             for clip, count in zip(clips[:2], (6, 3), strict=True)]  # fmt: skip
    examples = VideoTexts.questions(asked, tokenizer, 32, frames=2, side=16, pixels=pixels, cache=cache)
    batch = examples.batch(torch.tensor([7, 0, 8, 1]))
    assert batch.inputs["videos"].tolist() == [0, 1, 0, 1]
    alone = [examples.batch(torch.tensor([i])).inputs["pixel_values"][0] for i in (7, 0)]
    assert torch.equal(batch.inputs["pixel_values"], torch.stack(alone))
    assert examples.clips_in_example == pytest.approx(3 / 9)  # four and two of the first, three of the second

    order = examples.order(seed=3, batch_size=4)
    passes = [order[9 * i : 9 * i + 9].tolist() for i in (0, 1)]
    assert [sorted(one) for one in passes] == [list(range(9))] * 2
    assert passes[0] != passes[1]
    assert passes[1] == examples.order(3, 4)[9:18].tolist()
    changes = [sum((a < 6) != (b < 6) for a, b in zip(one, one[1:], strict=False)) for one in passes]
    assert max(changes) <= 2  # three groups


def test_a_second_epoch_decodes_nothing(clips, cache, tokenizer, decoded, tmp_path):
    def epoch(cache):
        return VideoTexts.captions(clips, tokenizer, 8, 4, 16, pixels, cache).batch(torch.arange(3))

    first = epoch(cache)
    assert decoded == ["a.mp4", "b.mp4"]
    again = epoch(FrameCache(cache.folder))
    assert torch.equal(first.inputs["pixel_values"], again.inputs["pixel_values"])
    assert decoded == ["a.mp4", "b.mp4"]
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clips[0].path.read_bytes())
    cache.sample(Clip(copy), 4, 16)  # of the same content
    assert decoded == ["a.mp4", "b.mp4"]
    write(clips[0].path, numbered(20)[5:15])  # of the same name
    changed = cache.sample(clips[0], 4, 16)
    cache.sample(clips[1], 5, 16)
    cache.sample(clips[1], 4, 8)
    assert decoded == ["a.mp4", "b.mp4", "a.mp4", "b.mp4", "b.mp4"]
    assert videos.numbers(changed) == [6, 8, 11, 13]


def test_frames_that_were_kept_by_half_are_decoded_again(clips, cache, decoded):
    whole = cache.sample(clips[0], 4, 16)
    (kept,) = cache.folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert np.array_equal(cache.sample(clips[0], 4, 16), whole)
    assert np.array_equal(np.load(kept), whole)
    assert decoded == ["a.mp4", "a.mp4"]


def test_the_fingerprint_is_of_texts_clips_and_sampling(clips, cache, tokenizer):
    def of(clips, frames=4):
        return VideoTexts.captions(clips, tokenizer, 8, frames, 16, pixels, cache).fingerprint()

    assert of(clips) == of(list(clips))
    assert len({of(clips), of(clips[::-1]), of(clips[:1]), of(clips, frames=5)}) == 4

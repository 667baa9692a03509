"""The right picture at a time, whatever a file is like; or one sentence with its name."""

import re

import numpy as np
import pytest

import videos
from abridged.data.video import decode
from abridged.data.video.decode import VideoError, duration, frames, sample, stretch, walk
from videos import numbered, numbers, write


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov", "ts", "avi"])
@pytest.mark.parametrize("between", [0, 3])
def test_the_picture_at_a_time_is_the_one_that_is_shown_then(tmp_path, ending, between):
    codec = "mpeg4" if ending == "avi" else "libx264"  # H.264 in AVI has no times of its own
    path = write(tmp_path / f"a.{ending}", numbered(20), between=between, codec=codec)
    found = frames(path, [0.05 + number / 10 for number in (0, 7, 3, 3, 19, 12)])
    assert found.shape == (6, videos.HEIGHT, videos.WIDTH, 3)
    assert found.dtype == np.uint8
    assert numbers(found) == [0, 7, 3, 3, 19, 12]
    assert numbers(frames(path, [0.0])) == [0]


def test_times_are_of_pictures_and_not_of_a_rate(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(5), times=[0, 0.1, 1.0, 1.05, 3.0])
    assert numbers(frames(path, [0.09, 0.1, 0.99, 1.01, 2.99, 3.0])) == [0, 1, 1, 2, 3, 4]
    assert numbers(picture for _, picture in walk(path, 0.5)) == [0, 1, 2, 3, 3, 3, 4]


def test_equal_parts_are_shown_by_their_middle(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20))
    assert numbers(sample(path, 4)) == [2, 7, 12, 17]
    assert numbers(sample(path, 2, start=1.0)) == [12, 17]
    assert numbers(sample(path, 2, start=0.4, end=0.8)) == [5, 7]
    assert numbers(sample(path, 1, start=1.8, end=99)) == [19]
    assert duration(path) == pytest.approx(2.0, abs=0.01)


def test_nothing_in_the_header_says_how_long(tmp_path):
    path = write(tmp_path / "a.mkv", numbered(20), live="1")
    with videos.av.open(str(path)) as container:
        assert not container.duration
        assert not container.streams.video[0].frames
    assert duration(path) == pytest.approx(2.0, abs=0.02)
    assert numbers(sample(path, 4)) == [2, 7, 12, 17]


@pytest.mark.parametrize(
    ("rotation", "corner"),
    [
        (None, "upper left"), ((90,), "lower left"), ((180,), "lower right"), ((270,), "upper right"),
        ((0, True), "upper right"), ((0, False, True), "lower left"),
    ],
)  # fmt: skip
def test_pictures_are_upright(tmp_path, rotation, corner):
    found = frames(write(tmp_path / "a.mp4", numbered(3), rotation=rotation), [0.1])[0]
    turned = rotation is not None and rotation[0] in (90, 270)
    assert found.shape[:2] == ((videos.WIDTH, videos.HEIGHT) if turned else (videos.HEIGHT, videos.WIDTH))
    places = {"upper left": (2, 2), "upper right": (2, -3), "lower left": (-3, 2), "lower right": (-3, -3)}
    assert {name for name, (y, x) in places.items() if found[y, x].mean() > 200} == {corner}


def test_odd_sizes_and_the_shorter_side(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(3, 25, 33), pixels="yuv444p")
    assert frames(path, [0.0]).shape == (1, 25, 33, 3)
    assert frames(path, [0.0], side=12).shape == (1, 12, 16, 3)
    assert frames(path, [0.0], side=99).shape == (1, 25, 33, 3)


@pytest.mark.parametrize("gop", ["", ":open-gop=1"])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_seeking_finds_what_reading_through_finds(tmp_path, monkeypatch, ending, gop):
    path = write(tmp_path / f"a.{ending}", numbered(50), key_frames=5, between=2, more=gop)
    times = [0.05, 2.35, 2.45, 4.75]
    sought, decoded = [], []
    seek, picture = decode._Video.sought, decode._Video._decoded

    def counted(self):
        for shown in picture(self):
            decoded.append(shown)
            yield shown

    monkeypatch.setattr(decode._Video, "sought", lambda self, time: (sought.append(time), seek(self, time))[1])
    monkeypatch.setattr(decode._Video, "_decoded", counted)
    monkeypatch.setattr(decode, "_KEY_FRAMES", 0.5)
    assert numbers(frames(path, times)) == [0, 23, 24, 47]
    assert sought == [2.35, 4.75]
    if ending == "mp4":
        assert len(decoded) < 30
    monkeypatch.setattr(decode, "_KEY_FRAMES", 100)
    assert numbers(frames(path, times)) == [0, 23, 24, 47]
    assert len(sought) == 2


def test_a_short_clip_is_left_early(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", numbered(50))
    decoded = []
    picture = decode._Video._decoded
    monkeypatch.setattr(
        decode._Video, "_decoded", lambda self: (shown for shown in picture(self) if decoded.append(shown) is None)
    )
    assert numbers(frames(path, [0.25])) == [2]
    assert len(decoded) == 4


def broken(tmp_path):
    """Files without pictures, and what is said of each."""
    whole = write(tmp_path / "whole.mp4", numbered(20))
    files = {
        "empty.mp4": (b"", "the file is empty"),
        "text.mp4": (b"not a video at all" * 100, "cannot be read as a video"),
        "head.mp4": (whole.read_bytes()[:200], "cannot be read as a video"),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "sound.mp4", [], sound=True)
    (tmp_path / "folder.mp4").mkdir()
    more = {
        "sound.mp4": "it has no pictures, only sound",
        "missing.mp4": "cannot be read",
        "folder.mp4": "cannot be read",
    }
    return {name: said for name, (_, said) in files.items()} | more


def test_what_has_no_pictures_is_one_sentence_with_its_name(tmp_path):
    for name, said in broken(tmp_path).items():
        path = tmp_path / name
        for read in (lambda p: frames(p, [0.0]), lambda p: sample(p, 2), duration, lambda p: list(walk(p, 1))):
            with pytest.raises(VideoError, match=f"^{re.escape(str(path))}: {said}") as raised:
                read(path)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_what_is_cut_short_gives_what_is_there(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 40, (60, videos.HEIGHT, videos.WIDTH, 3), dtype=np.uint8)
    pictures = [
        np.clip(picture + n - 20, 0, 255).astype(np.uint8) for picture, n in zip(numbered(58), noise, strict=False)
    ]
    path = write(tmp_path / f"a.{ending}", pictures, key_frames=5, movflags="faststart" if ending == "mp4" else "")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    there = duration(path)
    assert 1.5 < there < 4.5
    assert [time for time, _ in walk(path, 0.5)] == pytest.approx(np.arange(0, there - 0.2, 0.5), abs=0.01)
    assert sample(path, 4).shape[0] == 4
    assert frames(path, [0.5]).shape[0] == 1
    with pytest.raises(VideoError, match=r"has no picture at 5.50 s: it ends at [1-4]\.\d+ s"):
        frames(path, [0.5, 5.5])


def test_a_damaged_stretch_is_told_and_the_rest_is_read(tmp_path):
    path = write(tmp_path / "a.mkv", numbered(40), key_frames=5, codec="mjpeg", pixels="yuvj420p")
    content = bytearray(path.read_bytes())
    starts = [found.start() for found in re.finditer(b"\xff\xd8\xff", bytes(content))]
    assert len(starts) == 40
    content[starts[10] : starts[20]] = bytes(starts[20] - starts[10])  # pictures 10 to 19
    path.write_bytes(content)
    assert numbers(frames(path, [0.55, 3.05])) == [5, 30]
    seen = [round(time * 10) for time, _ in walk(path, 0.1)]
    assert set(seen) >= {*range(10), *range(21, 40)}
    assert not set(seen) & set(range(12, 19))
    with pytest.raises(VideoError, match="is damaged at 1.55 s"):
        frames(path, [1.55])


def test_all_pictures_of_a_stretch(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20), between=2, key_frames=5)
    found = list(stretch(path, 0.85, 1.25))
    assert numbers(picture for _, picture in found) == [8, 9, 10, 11, 12]
    assert [time for time, _ in found] == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2], abs=0.01)

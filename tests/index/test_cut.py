"""Clips cut out of videos: copied where a key frame is near, else encoded anew."""

import pytest

import videos
from abridged.core.errors import AbridgedError
from abridged.data.video.decode import duration, frames, walk
from abridged.index.cut import cut, cut_all
from abridged.index.search import Hit
from videos import av, numbered, numbers, write


def packets(path):
    with av.open(str(path)) as container:
        return {bytes(packet) for packet in container.demux(video=0) if packet.size}


def shown(path):
    return numbers(picture for _, picture in walk(path, 0.1))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_packets_are_copied_where_a_key_frame_is_near(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", numbered(40), key_frames=10, sound=True)
    made = cut(path, 1.2, 2.0, tmp_path / "hits" / "one")
    assert made == tmp_path / "hits" / f"one.{ending}"
    assert packets(made) < packets(path)
    assert shown(made) == list(range(10, 20))
    with av.open(str(made)) as container:
        assert len(container.streams.audio) == 1
        assert abs(container.start_time) < 150_000  # µs: sound may begin a little before pictures
    assert list(made.parent.iterdir()) == [made]


def test_pictures_are_encoded_anew_where_none_is(tmp_path):
    path = write(tmp_path / "a.mkv", numbered(40), key_frames=40, between=2, sound=True)
    made = cut(path, 2.05, 3.0, tmp_path / "one")
    assert made.suffix == ".mp4"
    assert shown(made) == pytest.approx(range(20, 30), abs=1)  # what differs by that little is encoded as the same
    assert duration(made) == pytest.approx(0.95, abs=0.11)
    with av.open(str(made)) as container:
        assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) == pytest.approx(
            0.95, abs=0.15
        )


@pytest.mark.parametrize("key_frames", [10, 40])
def test_what_is_turned_stays_upright(tmp_path, key_frames):
    path = write(tmp_path / "a.mp4", numbered(40), key_frames=key_frames, rotation=(90,))
    made = cut(path, 2.0, 3.0, tmp_path / "one")
    whole, part = frames(path, [2.5])[0], frames(made, [0.5])[0]
    assert whole.shape == part.shape == (videos.WIDTH, videos.HEIGHT, 3)
    assert abs(whole.astype(int) - part.astype(int)).mean() < 3


def test_odd_sizes(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(20, 25, 33), pixels="yuv444p")
    assert frames(cut(path, 1.5, 1.9, tmp_path / "one"), [0.0]).shape == (1, 24, 32, 3)


def test_hits_are_named_by_rank_file_and_time(tmp_path):
    write(tmp_path / "videos" / "sub" / "a.mp4", numbered(40), key_frames=10)
    hits = [Hit("sub/a.mp4", 1.0, 2.0, 0.9, 1), Hit("sub/a.mp4", 3.0, 4.0, 0.8, 1)]
    made = cut_all(tmp_path / "videos", hits, tmp_path / "hits")
    assert [path.name for path in made] == ["001-a-1.0-2.0.mp4", "002-a-3.0-4.0.mp4"]


def test_nothing_half_written_is_left(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(AbridgedError, match="cannot cut .*a.mp4"):
        cut(tmp_path / "a.mp4", 0, 1, tmp_path / "hits" / "one")
    path = write(tmp_path / "b.mp4", numbered(10))
    with pytest.raises(AbridgedError, match="no pictures from 5.00 s"):
        cut(path, 5, 6, tmp_path / "hits" / "one")
    assert list((tmp_path / "hits").iterdir()) == []

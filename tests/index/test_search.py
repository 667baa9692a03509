"""Moments by a text, in order, by a picture or a clip; where one looks; and looking again."""

import os

import numpy as np
import pytest
from PIL import Image

import videos
from abridged.core.errors import AbridgedError
from abridged.evaluation.vectors import KINDS, unit
from abridged.index.build import build
from abridged.index.embedder import identify
from abridged.index.search import Searcher, Where
from abridged.index.store import Content, File, Store
from colours import COLOURS, Colours, Pooled


@pytest.fixture(params=KINDS)
def searcher(model, folder, request, embedder):
    build(model, folder, kind=request.param, embedder=embedder)
    return Searcher(model, folder, embedder=embedder)


def told(hits):
    return [(hit.path, hit.start, hit.end) for hit in hits]


def test_a_text_finds_its_moment(searcher):
    assert len(searcher.text("blue", limit=1)) == 1
    best = {hit.path: hit for hit in reversed(searcher.text("blue"))}
    assert told([best["sub/blue.mp4"]]) == [("sub/blue.mp4", 0.0, 2.0)]
    assert told([best["sub/deep/grey-blue-grey.mp4"]]) == [("sub/deep/grey-blue-grey.mp4", 2.0, 4.0)]
    red = {hit.path: hit for hit in reversed(searcher.text("red"))}
    assert told([red["red-green.mp4"], red["green-red.mp4"]]) == [("red-green.mp4", 0, 2), ("green-red.mp4", 2, 4)]


def test_events_are_found_in_their_order(searcher):
    hits = searcher.text("red", then=["green"])
    assert told(hits)[0] == ("red-green.mp4", 0.0, 4.0)
    assert {hit.path: hit.score for hit in hits}["green-red.mp4"] < hits[0].score - 0.2
    assert told(searcher.text("green", then=["red"]))[0][0] == "green-red.mp4"
    assert told(searcher.text("grey", ["blue", "grey"], limit=1))[0][0] == "sub/deep/grey-blue-grey.mp4"


def test_a_picture_and_a_clip_find_what_looks_like_them(searcher, tmp_path):
    Image.new("RGB", (8, 8), COLOURS["blue"]).save(tmp_path / "blue.png")
    assert "blue" in searcher.picture(tmp_path / "blue.png", limit=1)[0].path
    clip = videos.write(tmp_path / "clip.mp4", videos.plain(COLOURS["green"]))
    assert {hit.path for hit in searcher.clip(clip, limit=2)} == {"red-green.mp4", "green-red.mp4"}
    (tmp_path / "bad.png").write_text("no picture")
    for read, name in ((searcher.picture, "bad.png"), (searcher.picture, "none.png"), (searcher.clip, "none.mp4")):
        with pytest.raises(AbridgedError, match=f"{name}: cannot be read"):
            read(tmp_path / name)


def test_one_may_look_under_a_folder_and_since_a_day(searcher, model, folder):
    assert {hit.path for hit in searcher.text("red", where=Where(under="sub/"))} <= {
        "sub/blue.mp4", "sub/deep/grey-blue-grey.mp4",
    }  # fmt: skip
    assert {hit.path for hit in searcher.text("blue", where=Where(under="sub/deep"))} == {"sub/deep/grey-blue-grey.mp4"}
    assert searcher.text("red", ["green"], where=Where(under="sub"))[0].path.startswith("sub/")
    assert searcher.text("red", where=Where(under="su")) == []
    os.utime(folder / "red-green.mp4", (2e9, 2e9))
    build(model, folder, embedder=Colours)
    again = Searcher(model, folder, embedder=Colours)
    assert {hit.path for hit in again.text("green", where=Where(since=1.9e9))} == {"red-green.mp4"}


class Matching(Pooled):
    """Likes what gets darker, whatever the text."""

    def match(self, frames, text):
        return float(frames[0].mean() > frames[-1].mean())


def test_the_best_are_looked_at_again_with_the_text(model, folder):
    videos.write(
        folder / "darker.mp4", [np.full((32, 48, 3), (level, 0, 0), np.uint8) for level in range(220, 180, -2)]
    )
    build(model, folder, embedder=Matching)
    searcher = Searcher(model, folder, embedder=Matching)
    plain = searcher.text("red", limit=9)
    assert searcher.text("red", limit=9, rerank=9)[0].path == "darker.mp4"
    assert plain[0].path != "darker.mp4"
    assert {hit.path for hit in searcher.text("red", limit=9, rerank=9)} == {hit.path for hit in plain}
    assert searcher.text("red", limit=1, rerank=9)[0].path == "darker.mp4"
    (folder / "red-green.mp4").unlink()
    assert searcher.text("red", limit=9, rerank=9)[0].path == "darker.mp4"  # what went away stays where it is


def test_what_cannot_be_searched_is_one_sentence(model, folder, tmp_path):
    with pytest.raises(AbridgedError, match="there is no index in .*videos: make it with"):
        Searcher(model, folder, embedder=Colours)
    build(model, folder, embedder=Colours)
    searcher = Searcher(model, folder, embedder=Colours)
    for texts in ((" ",), ("red", ["  "])):
        with pytest.raises(AbridgedError, match="the text is empty"):
            searcher.text(*texts)
    (model / "config.json").write_text("{}")
    with pytest.raises(AbridgedError, match="was made by another model than"):
        Searcher(model, folder, embedder=Colours)


def test_bits_find_what_values_find(model, tmp_path):
    random = np.random.default_rng(0)
    vectors = unit(np.repeat(random.normal(size=(600, 64)), 10, 0) + 0.5 * random.normal(size=(6000, 64)))
    queries = unit(vectors[::400] + unit(random.normal(size=(15, 64))))
    spans = np.stack([np.arange(10) * 2.0, np.arange(10) * 2.0 + 2], 1)

    class Wide(Colours):
        width = 64

    found = []
    for kind in ("float16", "binary"):
        file = tmp_path / f"{kind}.sqlite"
        store = Store(file, lambda kind=kind: {"width": 64, "kind": kind, "model": identify(model)})
        with store.together():
            for number, some in enumerate(np.split(vectors, 600)):
                store.add(str(number), Content(20.0, spans, some, spans[:, 0], some))
                store.see(f"{number}.mp4", File(1, 1, str(number)))
        searcher = Searcher(model, tmp_path, file, embedder=Wide)
        found.append([searcher.near(query, 1)[0].path for query in queries])
    assert sum(a == b for a, b in zip(*found, strict=True)) >= 14


def test_an_empty_folder_has_no_hits(model, tmp_path):
    (tmp_path / "none").mkdir()
    build(model, tmp_path / "none", embedder=Colours)
    searcher = Searcher(model, tmp_path / "none", embedder=Colours)
    assert searcher.text("red") == searcher.text("red", ["green"]) == []

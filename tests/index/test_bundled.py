"""The clips and the small video model that come along: what README's "Find a moment" shows."""

from pathlib import Path

import pytest

from abridged.core.names import is_local, resolve
from abridged.index.build import build
from abridged.index.search import Searcher
from scripts import benchmark

MODEL, CLIPS = "bundled-video", Path("bundled-clips")


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    file = tmp_path_factory.mktemp("index") / "moments.sqlite"
    assert build(MODEL, CLIPS, file).added == 12
    return Searcher(MODEL, CLIPS, file)


def test_what_comes_along_is_small_and_no_folder_of_the_package_is_written_to(searcher):
    folders = [Path(resolve(name)) for name in (MODEL, CLIPS)]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 3e6
    assert all(is_local(name) for name in (MODEL, CLIPS))
    assert len(list(folders[1].iterdir())) == 12
    assert not [path for folder in folders for path in folder.iterdir() if path.name.startswith(".")]


def test_a_moment_is_found_by_what_happens_in_it(searcher):
    hits = searcher.text("a red circle moves left", rerank=32)
    assert {hit.path for hit in hits[:2]} == {"01.mp4", "02.mp4"}  # in 03 and 04 it moves right
    times = {hit.path: (hit.start, hit.end) for hit in hits[:2]}
    assert times["01.mp4"][0] < 2  # six seconds of three events: the first here,
    assert times["02.mp4"][1] > 4  # the last there


def test_events_are_found_in_order(searcher):
    assert searcher.text("a red circle moves right", ["a blue square shrinks"])[0].path == "03.mp4"
    up, right = "an orange diamond moves up", "a green star moves right"
    assert searcher.text(up, [right])[0].path == "09.mp4"
    assert searcher.text(right, [up])[0].path == "10.mp4"


def test_most_of_what_happens_is_found(searcher):
    """Each event is in two clips, its opposite in two others; two events in that order are in one of four."""
    told = benchmark("shapes_world").examples()
    said = [[event.caption for event in story.events] for story in told]
    alone = {text: {f"{i:02}.mp4" for i, one in enumerate(said, 1) if text in one} for one in said for text in one}
    found = [searcher.text(text, rerank=32)[0].path in right for text, right in alone.items()]
    assert sum(found) >= 15, f"{sum(found)} of {len(found)}"
    ordered = [(one[a], one[b], f"{i:02}.mp4") for i, one in enumerate(said, 1) for a, b in ((0, 1), (1, 2), (0, 2))]
    found = [searcher.text(first, [then])[0].path == right for first, then, right in ordered]
    assert sum(found) >= 29, f"{sum(found)} of {len(found)}"

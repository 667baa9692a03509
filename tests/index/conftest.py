"""A folder of videos, and models of colours to index it with."""

import json

import pytest

import videos
from colours import COLOURS, Colours, Pooled


@pytest.fixture
def model(tmp_path):
    """A directory that an index can tell from another model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "colours"}))
    return folder


@pytest.fixture(params=[Colours, Pooled])
def embedder(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    """Ten pictures a second: red for 2 s, then green for 2 s and so on, as the names say."""
    where = tmp_path / "videos"
    for name in ("red-green", "green-red", "sub/blue", "sub/deep/grey-blue-grey"):
        colours = [COLOURS[colour] for colour in name.rpartition("/")[2].split("-")]
        videos.write(where / f"{name}.mp4", videos.plain(*colours, each=20), key_frames=5)
    return where

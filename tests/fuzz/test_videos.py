"""Videos of every container, and indexes, with bytes changed, lost and added."""

import pytest
from hypothesis import strategies as st

pytest.importorskip("av")
import damaged
import videos
from abridged.index.build import build
from colours import COLOURS, Pooled
from fuzzing import fuzz

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a whole file of each kind, by its ending."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = videos.plain(*COLOURS.values(), each=6)
    for name in ("a.mp4", "b.mkv", "c.ts", "d.webm"):
        codec = "libvpx" if name.endswith("webm") else "libx264"
        videos.write(folder / "videos" / name, pictures, key_frames=6, between=2, sound=name != "d.webm", codec=codec)
    videos.write(folder / "videos" / "e.avi", pictures, codec="mpeg4")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    build(folder / "model", folder / "videos", folder / "f.sqlite", embedder=Pooled)
    return {path.suffix: path.read_bytes() for path in (*(folder / "videos").iterdir(), folder / "f.sqlite")}


@st.composite
def mutated(draw, content):
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from([64, 2_000, len(content)]))  # headers more often than pictures
        at = draw(st.integers(0, min(near, len(content))))
        if draw(st.booleans()):
            at = len(content) - at
        gone = draw(st.sampled_from([0, 1, 4, 100, 5_000]))
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\0" * 100])))
        content = content[:at] + piece + content[at + gone :]
    return content[: draw(st.sampled_from([len(content), len(content) // 2]))]


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts", ".webm", ".avi", ".sqlite"])
def test_it_is_read_or_refused_in_a_sentence(ending, whole, tmp_path):
    def check(content):
        path = tmp_path / f"fuzzed{ending}"
        path.write_bytes(content)
        damaged.check(path)

    assert fuzz(check, mutated(whole[ending]), lambda content: (f"videos/fuzzed{ending}", content))

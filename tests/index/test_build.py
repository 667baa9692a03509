"""The index of a folder is what is in it: looked into once, resumed after a kill, followed when files move."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import isolated
import videos
from abridged.core.errors import AbridgedError
from abridged.data.video.decode import walk
from abridged.index.build import build, files_under
from abridged.index.readers import VIDEOS
from abridged.index.store import Store
from abridged.index.videos import look_into
from colours import COLOURS, Colours, Pooled


def state(file):
    """All that an index holds, without the numbers of its contents."""
    store = Store(file)
    paths = {tuple(path for path, _ in some): number for number, some in store.paths().items()}
    windows = store.windows()
    return {
        paths: (
            windows.spans[windows.contents == number].tolist(),
            windows.matrix.values[windows.contents == number].tolist(),
            *(found.tolist() for found in store.parts(number)),
        )
        for paths, number in paths.items()
    }, {path: file.digest for path, file in store.files().items()}


def test_what_is_new_changed_gone_or_moved_and_nothing_else_is_looked_into(model, folder, embedder):
    def run():
        made = []
        found = build(model, folder, embedder=lambda name: made.append(embedder(name)) or made[-1])
        return found, sum(one.looked_at for one in made)

    found, looked_at = run()
    assert (found.files, found.added, found.unchanged, found.skipped) == (4, 4, 0, {})
    assert looked_at > 0
    assert found.amount == pytest.approx((4 + 4 + 2 + 6) / 3600)
    before = state(folder / VIDEOS.index)
    found, looked_at = run()
    assert (found.unchanged, found.added, looked_at) == (4, 0, 0)
    assert state(folder / VIDEOS.index) == before

    videos.write(folder / "sub" / "blue.mp4", videos.plain(COLOURS["red"], each=30))
    (folder / "red-green.mp4").rename(folder / "renamed.mp4")
    shutil.copy(folder / "green-red.mp4", folder / "copy.mp4")
    (folder / "sub" / "deep" / "grey-blue-grey.mp4").unlink()
    found, looked_at = run()
    assert (found.unchanged, found.added, found.known, found.gone) == (1, 1, 2, 2)
    assert 0 < looked_at <= 24
    contents, files = state(folder / VIDEOS.index)
    assert set(files) == {"sub/blue.mp4", "renamed.mp4", "copy.mp4", "green-red.mp4"}
    assert set(contents) == {("renamed.mp4",), ("copy.mp4", "green-red.mp4"), ("sub/blue.mp4",)}
    assert contents["renamed.mp4",] == before[0]["red-green.mp4",]


def test_windows_and_frames_are_of_what_is_shown_then(folder, embedder):
    found = look_into(folder / "red-green.mp4", embedder(), every=0.5, scales=(1.0, 4.0))
    assert found.length == 4.0
    assert found.spans.tolist()[:2] == [[0, 1], [0.5, 1.5]]
    assert found.spans.tolist().count([0, 4]) == 1
    assert found.places.tolist() == [i / 2 for i in range(8)]
    red, green = (Colours().embed_text(colour) for colour in ("red", "green"))
    assert ((found.parts @ red) > 0.9).tolist() == [True] * 4 + [False] * 4
    for (start, end), vector in zip(found.spans, found.vectors, strict=True):
        share = np.clip(2 - start, 0, end - start) / (end - start)
        assert vector @ red > 0.9 or share < 1
        assert vector @ green > 0.9 or share > 0


def test_a_clip_is_shown_to_a_model_as_so_many_frames_in_order(folder):
    seen = []

    class Looks(Colours):
        frames = 3

        def embed_frames(self, frames):
            seen.append(["rg"[int(frame[0, 0, 1] > 128)] for frame in frames])
            return super().embed_frames(frames)

    look_into(folder / "red-green.mp4", Looks(), every=0.5, scales=(4.0,))
    assert seen == [["r", "g", "g"]]  # the middles of thirds of 8 frames: 1, 4, 6


def test_a_broken_file_is_skipped_with_its_reason_until_it_changes(model, folder):
    bad = folder / "bad.mp4"
    bad.write_bytes(b"nothing of the kind" * 99)
    (folder / "empty.mkv").write_bytes(b"")
    for added in (4, 0):
        found = build(model, folder, embedder=Pooled)
        assert found.added == added
        assert found.skipped["empty.mkv"] == "the file is empty"
        assert found.skipped["bad.mp4"].startswith("cannot be read as a video")
    before = Store(folder / VIDEOS.index).files()["bad.mp4"].digest
    bad.write_bytes(b"something of it all" * 99)  # as long as it was
    build(model, folder, embedder=Pooled)
    assert Store(folder / VIDEOS.index).files()["bad.mp4"].digest != before
    shutil.copy(folder / "red-green.mp4", bad)
    found = build(model, folder, embedder=Pooled)
    assert set(found.skipped) == {"empty.mkv"}


def test_what_is_hidden_or_no_video_is_passed_over(folder):
    for name in (".hidden.mp4", ".trash/a.mp4", "notes.txt", "folder.mp4/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    names = [path.relative_to(folder).as_posix() for path in files_under(folder, VIDEOS.suffixes)]
    assert names == ["green-red.mp4", "red-green.mp4", "sub/blue.mp4", "sub/deep/grey-blue-grey.mp4"]


def test_another_model_is_told_apart_and_the_same_one_elsewhere_is_not(model, folder, tmp_path):
    build(model, folder, embedder=Pooled)
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert build(moved, folder, embedder=Pooled).unchanged == 4
    (moved / "weights.safetensors").write_bytes(b"others")
    with pytest.raises(AbridgedError, match=r"was made by model .* to elsewhere .* --index FILE"):
        build(moved, folder, embedder=Pooled)
    other = tmp_path / "new" / "other.sqlite"
    assert build(moved, folder, other, embedder=Pooled).added == 4
    assert other.is_file()


def test_how_vectors_are_stored_stays(model, folder):
    build(model, folder, kind="int8", embedder=Pooled)
    assert build(model, folder, embedder=Pooled).unchanged == 4
    with pytest.raises(AbridgedError, match="stores vectors as int8, not float16"):
        build(model, folder, kind="float16", embedder=Pooled)
    with pytest.raises(AbridgedError, match="not as 'int4'"):
        build(model, folder, kind="int4", embedder=Pooled)
    with pytest.raises(AbridgedError, match="there is no folder"):
        build(model, folder / "none", embedder=Pooled)


def test_a_model_that_fails_leaves_no_half_index(model, folder):
    def fails(name):
        raise AbridgedError("no such model")

    with pytest.raises(AbridgedError, match="no such model"):
        build(model, folder, embedder=fails)
    assert build(model, folder, embedder=Pooled).added == 4


def indexed(model, folder):
    build(model, folder, embedder=Pooled)


WRITES = [("Store.add", 2, "after"), ("Store.see", 2, "after")]
STATEMENTS = [("Store._run", call, "after" if call % 2 else "before") for call in range(1, 21)]


@pytest.mark.parametrize("stops", [WRITES, pytest.param(STATEMENTS, marks=pytest.mark.slow)])
def test_a_kill_anywhere_leaves_an_index_that_goes_on(model, folder, tmp_path, stops):
    """SIGKILL before or after a statement of the first run, and then one run to the end."""
    build(model, folder, tmp_path / "whole.sqlite", embedder=Pooled)
    whole = state(tmp_path / "whole.sqlite")
    for number, (target, call, when) in enumerate(stops):
        (folder / VIDEOS.index).unlink(missing_ok=True)
        stop = isolated.Stop(f"abridged.index.store:{target}", call, when)
        ended = isolated.call(indexed, model, folder, folder=tmp_path / f"run{number}", stop=stop)
        assert ended.code == -signal.SIGKILL, ended.stderr
        build(model, folder, embedder=Pooled)
        assert state(folder / VIDEOS.index) == whole
        assert not list(folder.glob(f"{VIDEOS.index}-*"))


def test_an_unchanged_folder_needs_no_torch(model, folder):
    build(model, folder, embedder=Pooled)
    code = f"""
        import sys
        from abridged.cli import main
        sys.argv = ["abridged", "index", {str(model)!r}, {str(folder)!r}, "--json"]
        try:
            main()
        except SystemExit as exit:
            assert not exit.code, exit.code
        assert not {{"torch", "transformers", "av", "huggingface_hub"}} & set(sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    assert '"unchanged": 4' in run.stdout


def test_every_frame_is_looked_at_once_where_a_clip_is_its_frames(folder):
    model = Pooled()
    look_into(folder / "red-green.mp4", model, every=0.1)
    assert model.looked_at == len(list(walk(folder / "red-green.mp4", 0.1))) == 40

"""Written whole or not at all, with the rights that umask says, and nothing left of those who were killed."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from abridged.core.atomic import sweep, write_atomically, written_file, written_whole
from abridged.core.errors import AbridgedError


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "wanted"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_rights_are_those_that_umask_says(tmp_path, umask, wanted):
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "model") as folder:
            save_file({"a": zeros(1)}, folder / "model.safetensors")  # 0600 by itself
            (folder / "config.json").write_text("{}")
        with written_file(tmp_path / "file.safetensors") as file:
            save_file({"a": zeros(1)}, file)
    finally:
        os.umask(before)
    assert {rights(path) for path in (tmp_path / "model").iterdir()} == {wanted}
    assert rights(tmp_path / "file.safetensors") == wanted
    assert rights(tmp_path / "model") == 0o777 & ~umask


def fail(writing, half, error=ValueError("ours")):
    with writing as path:
        (path / half).write_text("half")
        raise error


def test_what_fails_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / "file", "old")
    for writing, half in ((written_file(tmp_path / "file"), ""), (written_whole(tmp_path / "new"), "config.json")):
        with pytest.raises(ValueError, match="ours"):
            fail(writing, half)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        Exception("No space left on device (os error 28)"),  # tokenizers
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_one_sentence_whoever_says_it(tmp_path, error):
    with pytest.raises(AbridgedError, match=r"cannot write .*model: No space left on device$"):
        fail(written_whole(tmp_path / "model"), "config.json", error)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_wanted(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AbridgedError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", "text")


KILLED = """
import os, signal, sys
from abridged.core.atomic import written_whole
with written_whole(sys.argv[1]) as folder:
    (folder / "half").write_text("")
    print(flush=True)
    if sys.argv[2:]:
        input()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_one_has_left_goes_and_what_is_being_written_stays(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    subprocess.run(command, stdout=subprocess.DEVNULL)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".writing")
    alive = subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        alive.stdout.readline()
        (busy,) = set(tmp_path.iterdir()) - {left}
        write_atomically(tmp_path / "other", "text")
        assert set(tmp_path.iterdir()) == {busy, tmp_path / "other"}
        assert (busy / "model" / "half").exists()
    finally:
        alive.communicate(b"\n")
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {tmp_path / "other"}


def test_nothing_else_is_swept(tmp_path):
    for name in (".mine.writing", "model.12.writing", ".model.12.writing.txt"):
        (tmp_path / name).mkdir()
    (tmp_path / ".note.12.writing").write_text("a file")
    (tmp_path / ".link.12.writing").symlink_to(tmp_path / ".mine.writing")
    before = sorted(tmp_path.iterdir())
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_threads_that_write_one_file(tmp_path):
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as pool:  # many rounds: what went wrong did so in one of a hundred
        list(pool.map(partial(write_atomically, tmp_path / "file"), texts * 25))
    assert (tmp_path / "file").read_text() in texts
    assert list(tmp_path.iterdir()) == [Path(tmp_path / "file")]

"""Where an output may go: only what abridged wrote is replaced, and what cannot be written is found out first."""

import os
import subprocess

import pytest

from abridged.core.errors import AbridgedError
from abridged.core.outputs import check_output


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to be in, as `place/here`, with a model that abridged wrote beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "abridged.json").write_text("{}")
    (tmp_path / "ours" / "model.safetensors").write_text("weights")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def refuse(words, path, **options):
    for overwrite in (True, False):
        with pytest.raises(AbridgedError, match=words):
            check_output(path, **{"overwrite": overwrite, **options})


@pytest.mark.parametrize("name", ["", ".", "..", "../here/..", "/", "nul\0"])
def test_a_name_that_is_none(place, name):
    refuse("has no name of its own", name)


@pytest.mark.parametrize(("name", "words"), [("é" * 101, "too long: 202 bytes"), ("a" * 5000, "too long")])
def test_a_name_that_is_too_long(place, name, words):
    refuse(words, place / name)
    refuse("cannot write to .*name too long", place / "/".join(["b" * 190] * 30))
    refuse("cannot write to", place / "half a letter \ud83d")


def test_a_new_name(place):
    assert check_output("student") == place / "here" / "student"
    assert check_output("new/folders/student") == place / "here" / "new" / "folders" / "student"
    assert list((place / "here").iterdir()) == []


def test_a_directory_that_abridged_wrote_or_an_empty_one_is_replaced_on_demand(place):
    for name in ("ours", "empty"):
        (place / name).mkdir(exist_ok=True)
        assert check_output(place / name, overwrite=True) == place / name
        with pytest.raises(AbridgedError, match="exists already: choose another output, or add --overwrite"):
            check_output(place / name, overwrite=False)
        with pytest.raises(AbridgedError, match="exists already: choose another output$"):
            check_output(place / name)


def test_a_directory_that_abridged_did_not_write(place):
    (place / "photos").mkdir()
    (place / "photos" / "one.jpg").write_text("")
    with pytest.raises(AbridgedError, match=r"photos is not replaced, since it has no abridged.json in it"):
        check_output(place / "photos", overwrite=True)
    (place / "photos" / "abridged.json").write_text("[]")  # somebody else's
    with pytest.raises(AbridgedError, match="no abridged.json"):
        check_output(place / "photos", overwrite=True)
    (place / "ours" / ".git").mkdir()
    with pytest.raises(AbridgedError, match=r"it has a folder .git in it"):
        check_output(place / "ours", overwrite=True)


@pytest.mark.parametrize("name", ["../here", "~/../here/../here"])
def test_the_directory_that_this_runs_in(place, monkeypatch, name):
    (place / "here" / "abridged.json").write_text("{}")
    monkeypatch.setenv("HOME", str(place / "ours"))
    refuse("has in it, the directory that this runs in", name)
    os.chdir(place / "ours")
    refuse("has in it, the directory that this runs in", place)


def test_what_is_read_is_not_replaced(place):
    refuse("is, or has in it, .*ours: choose", "../ours", inputs=["gpt2", place / "ours"])
    refuse("has in it, .*model.safetensors", "../ours", inputs=[None, str(place / "ours" / "model.safetensors")])
    (place / "alias").symlink_to(place / "ours")
    refuse("has in it, .*alias", place / "ours", inputs=[place / "alias"])
    (place / "rows.tsv").write_text("precious")
    refuse("has in it, .*rows.tsv", place / "rows.tsv", directory=False, inputs=[place / "rows.tsv"])
    assert check_output(
        place / "ours", overwrite=True, inputs=["gpt2", "a recipe: {of: one line}\n", "x" * 5000, place / "here"]
    )


@pytest.mark.parametrize("target", ["ours", "nowhere", "file"])
def test_a_link_dangling_or_not(place, target):
    (place / "file").write_text("precious")
    (place / "link").symlink_to(place / target)
    refuse("is a link", place / "link")
    refuse("is a link", place / "link", directory=False)


def test_a_thing_of_the_other_kind(place):
    (place / "file").write_text("precious")
    refuse("is a file: choose another output", place / "file")
    refuse("is a directory: choose another output", place / "ours", directory=False)
    refuse("file is not a directory", place / "file" / "below")
    (place / "dangling").symlink_to(place / "nowhere")
    refuse("dangling is not a directory", place / "dangling" / "below")
    assert check_output(place / "file", directory=False, overwrite=True) == place / "file"


def test_a_place_that_cannot_be_written(place):
    if os.geteuid():
        place.chmod(0o500)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        refuse("nothing can be written in", place / "student")
        refuse("nothing can be written in", place / "further" / "down" / "student.gguf", directory=False)
    finally:
        place.chmod(0o700) if os.geteuid() else subprocess.run(["umount", str(place)])


def test_a_file_system_of_its_own_cannot_be_replaced(place):
    (place / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "disk")], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        with pytest.raises(AbridgedError, match="is a file system of its own"):
            check_output(place / "disk", overwrite=True)
    finally:
        subprocess.run(["umount", str(place / "disk")])

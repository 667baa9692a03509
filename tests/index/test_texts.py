"""An index of a folder of texts: passages found with their lines, kept up with files, resumed after a kill."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from typer.testing import CliRunner

import bags
import isolated
from abridged.cli import app as command
from abridged.core.errors import AbridgedError
from abridged.evaluation.vectors import KINDS
from abridged.index.build import build
from abridged.index.embedder import open_embedder
from abridged.index.readers import TEXTS, VIDEOS
from abridged.index.search import Searcher, Together, Where
from abridged.index.store import Store
from bags import Bags
from colours import Pooled
from embedders import embedder, sentences


@pytest.fixture
def notes(tmp_path):
    return bags.write(tmp_path / "notes")


def state(file):
    """All that an index of texts holds, without the numbers of its contents."""
    store = Store(file)
    windows = store.windows()
    return {
        tuple(path for path, _ in some): (
            windows.spans[windows.contents == number].tolist(),
            windows.matrix.values[windows.contents == number].tolist(),
        )
        for number, some in store.paths().items()
    }, {path: file.digest for path, file in store.files().items()}


def told(hits):
    return [(hit.path, hit.line, hit.last_line) for hit in hits]


@pytest.mark.parametrize("kind", KINDS)
def test_passages_are_found_with_their_lines(model, notes, kind):
    found = build(model, notes, kind=kind, embedder=Bags)
    assert (found.reads, found.files, found.added, found.amount, found.unit) == ("texts", 4, 4, 7, "passages")
    searcher = Searcher(model, notes, embedder=Bags)
    best = searcher.text("reset the lamp with its button")[0]
    assert told([best]) == [("reset.md", 5, 9)]
    assert best.text == "## Reset\n\nTo reset the lamp, hold its button.\n\nThen wait for a green light."
    assert told(searcher.text("knead flour", limit=1)) == [("sub/recipes.jsonl", 3, 3)]
    assert told(searcher.text("counts numbers", limit=1)) == [("sub/deep/people.csv", 2, 3)]
    assert told(searcher.text("gulls over the harbour", limit=1)) == [("sea.txt", 1, 4)]
    assert len(searcher.text("the", limit=20)) == 7


def test_one_may_look_under_a_folder_and_since_a_day(model, notes):
    os.utime(notes / "sea.txt", (1000, 1000))
    build(model, notes, embedder=Bags)
    searcher = Searcher(model, notes, embedder=Bags)
    assert {hit.path for hit in searcher.text("grey sea", where=Where(under="sub"))} == {
        "sub/recipes.jsonl", "sub/deep/people.csv",
    }  # fmt: skip
    assert "sea.txt" not in {hit.path for hit in searcher.text("grey sea", where=Where(since=2000))}


def test_only_what_changed_is_read_again(model, notes):
    def run():
        made = []
        found = build(model, notes, embedder=lambda name: made.append(Bags()) or made[-1])
        return found, sum(one.read for one in made)

    assert run()[1] == 7
    before = state(notes / TEXTS.index)
    assert run()[1] == 0
    (notes / "sea.txt").write_text("The sea is calm.\n")
    (notes / "reset.md").rename(notes / "lamp.md")
    (notes / "sub" / "recipes.jsonl").unlink()
    shutil.copy(notes / "sub/deep/people.csv", notes / "copy.csv")
    found, read = run()
    assert (found.unchanged, found.added, found.known, found.gone, read) == (1, 1, 2, 2, 1)
    contents, files = state(notes / TEXTS.index)
    assert set(files) == {"sea.txt", "lamp.md", "sub/deep/people.csv", "copy.csv"}
    assert contents["lamp.md",] == before[0]["reset.md",]
    (notes / "lamp.md").rename(notes / "lamp.txt")  # it reads otherwise: no heading begins a passage
    assert run()[1] == 1


def test_a_text_that_changed_since_is_not_told_wrongly(model, notes):
    build(model, notes, embedder=Bags)
    searcher = Searcher(model, notes, embedder=Bags)
    (notes / "sea.txt").write_text("Something else, longer than it was before it was read and written anew.\n")
    hit = searcher.text("gulls over the harbour", limit=1)[0]
    assert (hit.path, hit.line, hit.text) == ("sea.txt", None, None)
    (notes / "sea.txt").unlink()
    assert searcher.text("gulls over the harbour", limit=1)[0].text is None


def test_what_cannot_be_read_is_skipped_with_its_reason(model, notes):
    (notes / "latin.txt").write_bytes(b"caf\xe9")
    (notes / "empty.md").write_text("")
    for added in (4, 0):
        found = build(model, notes, embedder=Bags)
        assert (found.added, found.skipped["empty.md"]) == (added, "there are no words in it")
        assert found.skipped["latin.txt"].startswith("cannot be read: not UTF-8 text")


def test_texts_and_videos_of_a_folder_have_an_index_each_and_are_searched_together(model, folder, tmp_path):
    bags.write(folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bags"}')
    assert build(model, folder, embedder=Pooled).reads == "videos"
    found = build(other, folder, embedder=Bags)
    assert (found.reads, found.files) == ("texts", 4)
    assert (build(model, folder, embedder=Pooled).unchanged, build(other, folder, embedder=Bags).unchanged) == (4, 4)
    seeing, reading = Searcher(model, folder, embedder=Pooled), Searcher(other, folder, embedder=Bags)
    both = Together([reading, seeing])
    assert both.reads == ["texts", "videos"]
    hits = both.text("green", limit=5)
    assert [hasattr(hit, "line") for hit in hits] == [True, False, True, False, True]
    assert hits[0].path == "reset.md"
    assert hits[1].path in ("green-red.mp4", "red-green.mp4")
    assert both.text("red", ["green"])[0].path == "red-green.mp4"
    assert both.file(hits[1].content) == folder / hits[1].path
    assert reading.file(hits[0].content) is None
    with pytest.raises(AbridgedError, match="is searched for in videos"):
        reading.text("red", ["green"])
    with pytest.raises(AbridgedError, match="a picture is searched for in videos"):
        reading.picture(tmp_path / "a.png")
    third = tmp_path / "third"
    third.mkdir()
    (third / "config.json").write_text("{}")
    with pytest.raises(AbridgedError, match=r"sqlite and .* were made by another model"):
        Searcher(third, folder, embedder=Bags)
    with pytest.raises(AbridgedError, match="was made by other"):
        build(third, folder, embedder=Bags)


def test_vectors_may_be_cut_and_stay_so(model, notes):
    build(model, notes, dimensions=16, embedder=Bags)
    assert build(model, notes, embedder=Bags).unchanged == 4
    searcher = Searcher(model, notes, embedder=Bags)
    assert searcher.store.width == 16
    near = searcher.text("To reset the lamp, hold its button. Then wait for a green light. Reset")[0]
    assert (near.path, near.line) == ("reset.md", 5)
    assert near.score > 0.99
    with pytest.raises(AbridgedError, match="stores vectors of 16 numbers, not 32"):
        build(model, notes, dimensions=32, embedder=Bags)
    with pytest.raises(AbridgedError, match="cannot be cut to 65"):
        build(model, notes, notes / "other.sqlite", dimensions=65, embedder=Bags)

    class Narrow(Bags):
        width = 8

    with pytest.raises(AbridgedError, match="holds vectors of 16 numbers, and .* makes such of 8"):
        Searcher(model, notes, embedder=Narrow)


@pytest.mark.parametrize(
    "damage", ["[]", '{"width": 64, "kind": "int8"}', '{"width": 64, "kind": "int8", "model": {}}']
)
def test_settings_that_say_nothing_are_one_sentence(model, notes, damage):
    build(model, notes, embedder=Bags)
    Store(notes / TEXTS.index, dict)._run("UPDATE settings SET value = ?", [damage])
    for ask in (build, Searcher):
        with pytest.raises(AbridgedError, match=f"{TEXTS.index} (is no index|does not say)"):
            ask(model, notes, embedder=Bags)


def indexed(model, notes):
    build(model, notes, embedder=Bags)


WRITES = [("Store.add", 2, "after"), ("Store.see", 2, "after"), ("Store._run", 1, "after")]
STATEMENTS = [("Store._run", call, "after" if call % 2 else "before") for call in range(1, 21)]


@pytest.mark.parametrize("stops", [WRITES, pytest.param(STATEMENTS, marks=pytest.mark.slow)])
def test_a_kill_anywhere_leaves_an_index_that_goes_on(model, notes, tmp_path, stops):
    build(model, notes, tmp_path / "whole.sqlite", embedder=Bags)
    whole = state(tmp_path / "whole.sqlite")
    for number, (target, call, when) in enumerate(stops):
        (notes / TEXTS.index).unlink(missing_ok=True)
        stop = isolated.Stop(f"abridged.index.store:{target}", call, when)
        ended = isolated.call(indexed, model, notes, folder=tmp_path / f"run{number}", stop=stop)
        assert ended.code == -signal.SIGKILL, ended.stderr
        build(model, notes, embedder=Bags)
        assert state(notes / TEXTS.index) == whole
        assert not list(notes.glob(f"{TEXTS.index}-*"))


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    return embedder(tmp_path_factory.mktemp("sentences") / "m", max_length=12, query="old man ", passage="red sea ")


def test_a_model_of_sentences_reads_what_fits_and_has_its_prompts(sentence_model):
    model = open_embedder(sentence_model)
    lines = sentences(9)
    prompt = model.encoder.tokenizer("red sea ", add_special_tokens=False)["input_ids"]
    assert model.limit == 12 - 2 - len(prompt)
    assert model.count(lines) == [len(model.encoder.tokenizer(line)["input_ids"]) - 2 for line in lines]
    found = model.embed_passages(lines)
    assert found.shape == (9, model.width)
    assert np.allclose(found, model.encoder.encode([f"red sea {line}" for line in lines]).vectors, atol=1e-5)
    assert np.allclose(model.embed_text(lines[0]), model.encoder.encode([f"old man {lines[0]}"]).vectors[0], atol=1e-5)


def test_the_command_line(sentence_model, notes):
    def run(*arguments):
        return CliRunner().invoke(command.app, [str(argument) for argument in arguments])

    ended = run("index", sentence_model, notes, "--dimensions", 16)
    assert ended.exit_code == 0, ended.output
    assert "4 texts: 4 looked into, " in ended.stdout
    assert "passages" in ended.stdout
    assert "do not say that it was trained" in ended.stderr
    ended = run("search", sentence_model, notes, "a small red house", "--json", "--under", "sub/deep")
    hits = json.loads(ended.stdout)
    assert hits[0].keys() == {"path", "line", "last_line", "text", "score", "content"}
    assert {hit["path"] for hit in hits} == {"sub/deep/people.csv"}
    ended = run("search", sentence_model, notes, "a small red house", "--limit", 1)
    place, *text = ended.stdout.splitlines()
    path, _, lines = place.split()[0].partition(":")
    assert (notes / path).is_file()
    assert lines[0].isdigit()
    assert text
    assert all(line.startswith("    ") or not line for line in text)
    ended = run("search", sentence_model, notes, "--cut", notes / "clips", "a")
    assert (ended.exit_code, "index of texts" in ended.stderr) == (2, True)
    ended = run("search", sentence_model, notes / "sub", "a")
    assert ended.exit_code != 0
    assert not (notes / VIDEOS.index).exists()

"""The file that an index is: what goes in comes out, and what is none is told in one sentence."""

import sqlite3

import numpy as np
import pytest

from abridged.core.errors import AbridgedError
from abridged.evaluation.vectors import KINDS, unit
from abridged.index.store import Content, File, Store


def content(seed, windows=3, parts=5):
    random = np.random.default_rng(seed)
    spans = np.sort(random.uniform(0, 9, (windows, 2)))
    vectors, some = (unit(random.normal(size=(n, 16))) for n in (windows, parts))
    return Content(9.5, spans, vectors, np.arange(parts) / 2, some)


@pytest.fixture(params=KINDS)
def store(tmp_path, request):
    made = Store(tmp_path / "index.sqlite", lambda: {"width": 16, "kind": request.param, "model": "m"})
    made.add("a", content(1))
    made.add("b", content(2, windows=700))
    made.add("broken", "no pictures")
    for path, digest in (("x/one.mp4", "a"), ("two.mp4", "b"), ("copy of one.mp4", "a"), ("bad.mp4", "broken")):
        made.see(path, File(10, 20, digest))
    yield made
    made.close()


def test_what_goes_in_comes_out(store):
    again = Store(store.file)
    assert again.settings == {"width": 16, "kind": store.kind, "model": "m"}
    windows = again.windows()
    assert windows.contents.tolist() == [1] * 3 + [2] * 700
    assert windows.first == {1: 0, 2: 3}
    assert np.array_equal(windows.spans[:3], content(1).spans)
    query = unit(np.ones(16))
    near = np.concatenate([content(1).vectors, content(2, windows=700).vectors]) @ query
    assert np.corrcoef(windows.matrix.scores(query), near)[0, 1] > (0.8 if store.kind == "binary" else 0.999)
    places, parts = again.parts(2)
    assert np.array_equal(places, content(2, windows=700).places)
    assert np.allclose(parts, content(2, windows=700).parts, atol=0.01)
    assert np.array_equal(again.parts(2, 0.5, 1.5)[1], parts[1:3])
    if store.kind == "binary":
        assert np.allclose(
            dict(again.exact({2: np.array([5, 699])}))[2], content(2, windows=700).vectors[[5, 699]], atol=0.01
        )
    assert again.paths() == {1: [("copy of one.mp4", 20), ("x/one.mp4", 20)], 2: [("two.mp4", 20)]}
    assert again.faults() == {"broken": "no pictures"}
    assert again.knows("broken")
    assert not again.knows("c")
    assert again.length() == 19.0


def test_a_content_goes_with_its_last_file(store):
    store.forget(["x/one.mp4", "bad.mp4"])
    assert set(store.paths()) == {1, 2}
    assert not store.knows("broken")
    store.forget(["copy of one.mp4"])
    assert set(store.files()) == {"two.mp4"}
    assert not store.knows("a")
    assert store.windows().contents.tolist() == [2] * 700


def test_names_may_be_of_any_bytes(store):
    name = b"caf\xe9 \xff.mp4".decode("utf-8", "surrogateescape")
    store.see(name, File(1, 2, "a"))
    assert name in store.files()


def test_together_is_whole_or_not_at_all(store):
    def fails():
        with store.together():
            store.see("new.mp4", File(1, 2, "a"))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert "new.mp4" not in store.files()


def test_an_empty_index_has_no_windows(tmp_path):
    windows = Store(tmp_path / "i", lambda: {"width": 16, "kind": "float16"}).windows()
    assert len(windows.contents) == len(windows.matrix.scores(np.ones(16))) == 0


def test_a_reader_cannot_write(store):
    with pytest.raises(AbridgedError, match="readonly"):
        Store(store.file).see("a", File(1, 2, "a"))


@pytest.mark.parametrize("what", ["missing", "text", "other", "newer", "empty", "cut"])
def test_what_is_no_index_is_one_sentence(tmp_path, store, what):
    path = tmp_path / "it"
    if what == "text":
        path.write_text("no database" * 200)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "cut":
        path.write_bytes(store.file.read_bytes()[:5000])
    elif what != "missing":
        base = sqlite3.connect(path)
        base.execute("CREATE TABLE other(a)")
        base.execute(f"PRAGMA user_version = {99 if what == 'newer' else 0}")
        base.commit()
    with pytest.raises(AbridgedError, match=str(path)) as raised:
        Store(path).windows()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.mp4", "a/../../outside.mp4", ""])
def test_an_index_leads_nowhere_out_of_its_folder(store, path):
    store.see(path, File(1, 2, "a"))
    for read in (store.paths, store.files):
        with pytest.raises(AbridgedError, match="a path leads out of its folder"):
            read()


@pytest.mark.parametrize("column", ["spans", "vectors", "places", "parts"])
def test_what_does_not_fit_together_is_damaged(store, column):
    store._run(f"UPDATE contents SET {column} = substr({column}, 9) WHERE id = 2")
    with pytest.raises(AbridgedError, match="is no index, or damaged"):
        (store.windows if column in ("spans", "vectors") else lambda: store.parts(2))()

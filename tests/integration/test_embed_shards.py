"""Vectors of much data in Parquet files: what is in them, whoever makes them, and whatever comes between."""

import json
import signal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import isolated
from abridged.core.errors import AbridgedError
from abridged.embedding import embed_data
from abridged.evaluation.vectors import quantized
from abridged.models.load import load_model
from abridged.tasks.embeddings import embed
from embedders import embedder, sentences
from isolated import Stop

LINES = sentences(45)
MISSING = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("shards")
    embedder(where / "model", max_length=8, query="old man ")
    texts = [None if i == MISSING else line for i, line in enumerate(LINES)]
    (where / "data").mkdir()
    for name, some in (("a", slice(0, 20)), ("b", slice(20, 45))):
        table = pyarrow.table({"text": texts[some], "id": list(range(1000, 1045))[some]})
        pyarrow.parquet.write_table(table, where / "data" / f"{name}.parquet", row_group_size=6)
    embed_data(where / "model", where / "data", where / "float16", keep=["id", "text"], shard_rows=16, workers=1)
    return where


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Processes of processes import what takes seconds, one after the other where others work, too."""
    monkeypatch.setattr(isolated, "TIMEOUT", 900)


@pytest.fixture(scope="module")
def own(folder):
    """What the model makes of the texts."""
    return embed(*load_model(folder / "model"), LINES).vectors


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def table(folder):
    return pyarrow.concat_tables(pyarrow.parquet.read_table(path) for path in sorted(folder.glob("*.parquet")))


def values(found):
    """(n, width) of the column, with what null holds."""
    return np.stack([np.asarray(one if one is not None else np.zeros(32)) for one in found["vector"].to_pylist()])


def test_the_rows_are_those_of_the_data(folder, own):
    found = table(folder / "float16")
    assert len(contents(folder / "float16")) == 3
    assert found["row"].to_pylist() == list(range(45))
    assert found["id"].to_pylist() == list(range(1000, 1045))
    assert found["text"].to_pylist() == [None if i == MISSING else line for i, line in enumerate(LINES)]
    assert found.schema.field("vector").type == pyarrow.list_(pyarrow.float16(), 32)
    assert [i for i, one in enumerate(found["vector"].to_pylist()) if one is None] == [MISSING]
    there = np.arange(45) != MISSING
    np.testing.assert_allclose(values(found)[there], own[there], atol=1e-3)
    account = json.loads((folder / "float16" / "abridged.json").read_text())
    assert (account["texts"], account["missing"], account["width"], account["shards"]) == (45, 1, 32, 3)
    assert 0 < account["cut"] < 45
    assert not (folder / "float16.partial").exists()


def test_fewer_numbers(folder, own, tmp_path):
    told = embed_data(
        folder / "model", folder / "data", tmp_path / "out", vectors="float32", dimensions=8, shard_rows=20, workers=1
    )
    found = table(tmp_path / "out")
    assert told["width"] == 8
    assert found.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 8)
    there = [i for i, one in enumerate(found["vector"].to_pylist()) if one is not None]
    vectors = np.array([found["vector"][i].as_py() for i in there])
    wanted = own[there][:, :8] / np.linalg.norm(own[there][:, :8], axis=1, keepdims=True)
    assert vectors == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("kind", "kept"), [("int8", pyarrow.int8()), ("binary", pyarrow.uint8())])
def test_fewer_bits(folder, own, kind, kept, tmp_path):
    embed_data(folder / "model", folder / "data", tmp_path / kind, vectors=kind, shard_rows=20, workers=1)
    found = table(tmp_path / kind)
    assert found.schema.field("vector").type == pyarrow.list_(kept, 32 if kind == "int8" else 4)
    there = np.arange(45) != MISSING
    theirs = np.stack([np.asarray(one) for i, one in enumerate(found["vector"].to_pylist()) if i != MISSING])
    if kind == "int8":
        assert np.abs(theirs - quantized(own[there], kind).astype(int)).max() <= 1
    else:
        assert (np.unpackbits((theirs ^ quantized(own[there], kind)).astype(np.uint8)).mean()) < 0.01


def arguments(folder, output, *more):
    data = ["--data", folder / "data", "--keep", "id,text", "--shard-rows", 16]
    return ["embed", folder / "model", *data, "--output", output, *more]


def test_two_workers_write_the_same_bytes(command, folder, tmp_path):
    ended = command(*arguments(folder, tmp_path / "two", "--workers", 2))
    assert ended.code == 0, ended.stderr
    assert "1 of 45 texts are empty or missing: their vectors are null" in ended.stderr
    assert "texts are longer than the model reads and lost their ends" in ended.stderr
    assert "45 vectors of 32 numbers" in ended.stdout
    assert contents(tmp_path / "two") == contents(folder / "float16")


def test_killed_and_resumed_it_makes_what_is_not_there(command, folder, tmp_path):
    out = tmp_path / "out"
    stop = Stop("abridged.index.shards:Shards.write", 3)
    assert command(*arguments(folder, out, "--workers", 1), stop=stop).code == -signal.SIGKILL
    made = {path.name: path.stat().st_ino for path in (tmp_path / "out.partial" / "parts").glob("*.parquet")}
    assert len(made) == 2
    again = command(*arguments(folder, out, "--workers", 1))
    assert (again.code, again.stderr.count("add --resume")) == (1, 1)
    other = command(*arguments(folder, out, "--vectors", "int8", "--resume"))
    assert "its vectors differ from the interrupted run's" in other.stderr
    ended = command(*arguments(folder, out, "--workers", 1, "--resume"))
    assert ended.code == 0, ended.stderr
    assert contents(out) == contents(folder / "float16")
    assert {name: (out / name).stat().st_ino for name in made} == made
    assert not (tmp_path / "out.partial").exists()


def test_a_shard_that_is_damaged_is_made_again(command, folder, tmp_path):
    stop = Stop("abridged.index.shards:Shards.write", 3)
    assert command(*arguments(folder, tmp_path / "out", "--workers", 1), stop=stop).code == -signal.SIGKILL
    shard = tmp_path / "out.partial" / "parts" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert command(*arguments(folder, tmp_path / "out", "--workers", 1, "--resume")).code == 0
    assert contents(tmp_path / "out") == contents(folder / "float16")


def test_a_fault_in_a_worker_is_one_sentence(command, folder, tmp_path):
    ended = command(*arguments(folder, tmp_path / "out", "--workers", 2, "--prompt", "passage"))
    assert ended.code == 1
    assert len(ended.said) == 1
    assert "the model has no prompt called 'passage': it has query" in ended.said[0]


def test_a_fault_in_a_row_names_it(folder, tmp_path):
    rows = [{"text": "red sea", "id": 1}, {"text": ["red"], "id": 2}, {"text": "old man", "id": "x"}]
    for number, message in ((1, "line 2 of .* has a list"), (2, "line 2 of .* no whole number of 64 bits")):
        some = [rows[0], rows[number]]
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        with pytest.raises(AbridgedError, match=message):
            embed_data(folder / "model", tmp_path / "a.jsonl", tmp_path / "out", keep=["id"], workers=1)
        assert not (tmp_path / "out").exists()
        embed_data(folder / "model", folder / "data", tmp_path / "out", workers=1, overwrite=True)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()


def test_options_of_the_directory_are_refused_elsewhere(command, folder, tmp_path):
    ended = command(
        "embed", folder / "model", "--file", folder / "data", "--output", tmp_path / "a.npy", "--workers", 2
    )
    assert ended.code == 2
    assert "is for an --output that is a directory" in ended.stderr

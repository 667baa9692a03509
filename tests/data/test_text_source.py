"""Texts that are read a few at a time: from any row on, of all kinds of files and of a dataset."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from abridged.core.errors import AbridgedError
from abridged.data.text_source import Cursor, TextSource

TEXTS = [f"text {i}" if i % 7 else "" for i in range(40)]


def write(folder, kind):
    """A file of TEXTS, and what opens it."""
    folder.mkdir(exist_ok=True)
    ids = list(range(100, 140))
    path = folder / f"a.{kind}"
    if kind == "parquet":
        table = pyarrow.table({"noise": ["x" * 50] * 40, "text": TEXTS, "id": ids})
        pyarrow.parquet.write_table(table, path, row_group_size=9)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": t, "id": i}) + "\n" for t, i in zip(TEXTS, ids, strict=True)))
    elif kind == "csv":
        path.write_text("text,id\n" + "".join(f'"{t}",{i}\n' for t, i in zip(TEXTS, ids, strict=True)))
    else:
        path.write_text("".join(f" {t}\n" for t in TEXTS))
    return path


def texts(cursor, start, count):
    return [text for _, text in cursor.take(start, count)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "txt"])
def test_any_rows_of_a_file(tmp_path, kind):
    source = TextSource.open(write(tmp_path, kind))
    assert len(source) == 40
    cursor = Cursor(source)
    for start, count in ((0, 3), (3, 9), (20, 5), (20, 20), (1, 1), (39, 1)):
        assert texts(cursor, start, count) == TEXTS[start : start + count]


def test_a_folder_is_numbered_through(tmp_path):
    for name, kind in (("1", "parquet"), ("2", "jsonl"), ("3", "csv")):
        write(tmp_path / name, kind)
    (tmp_path / "notes.txt").write_text("not read, since there are files of rows\n")
    source = TextSource.open(tmp_path, kept=["id"])
    assert [part.count for part in source.parts] == [40, 40, 40]
    assert source.kept == (("id", True),)
    assert texts(Cursor(source), 35, 60) == (TEXTS * 3)[35:95]


def test_a_parquet_file_is_read_from_the_row_group_on_and_without_other_columns(tmp_path, monkeypatch):
    source, asked = TextSource.open(write(tmp_path, "parquet"), kept=["id"]), []
    whole = pyarrow.parquet.ParquetFile.iter_batches

    def seen(self, *given, **named):
        asked.append((named["row_groups"], named["columns"]))
        return whole(self, *given, **named)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", seen)
    (row, text), *_ = Cursor(source).take(29, 2)
    assert (text, row["id"], row.number) == (TEXTS[29], 129, 30)
    assert asked == [([3, 4], ["text", "id"])]


def test_a_dataset_by_name(monkeypatch):
    def load_dataset(*names):
        assert names == ("some/set", "small")
        part = datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(40))})
        return {"train": part, "test": part.select(range(5))}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    source = TextSource.open("some/set:small")
    assert texts(Cursor(source), 38, 4) == [*TEXTS[38:], *TEXTS[:2]]
    assert len(TextSource.open("some/set:small", split="test")) == 5
    with pytest.raises(AbridgedError, match="has no part 'dev': it has train, test"):
        TextSource.open("some/set:small", split="dev")


def test_other_data_are_told_apart(tmp_path):
    path = write(tmp_path, "txt")
    before = TextSource.open(path).marks
    path.write_text(path.read_text().replace("text 39", "text 93"))
    assert TextSource.open(path).marks != before


def test_what_has_become_shorter_is_noticed(tmp_path):
    source = TextSource.open(path := write(tmp_path, "jsonl"))
    path.write_text('{"text": "a", "id": 1}\n')
    with pytest.raises(AbridgedError, match="changed while it was read"):
        texts(Cursor(source), 0, 5)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "no such file or folder"),
        ("", {}, "holds no text"),
        ('{"text": "a"}\n', {"column": "body"}, "has no column 'body'"),
        ('{"text": "a"}\n', {"kept": ["id"]}, "has no column 'id'"),
        ('{"a": "a", "b": "b"}\n', {}, "say which holds the sentences"),
        ('{"text": "a"}\n', {"split": "train"}, "only a dataset by name has a part"),
        ('{"text": "a"}\n{"text"\n', {}, "line 2"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, content, options, message):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AbridgedError, match=message):
        TextSource.open(path, **options)


def test_a_damaged_parquet_file_ends_in_one_sentence(tmp_path):
    path = write(tmp_path, "parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AbridgedError, match="cannot read rows from"):
        TextSource.open(path)

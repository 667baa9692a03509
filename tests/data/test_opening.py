"""Data are opened once, and say what they are before any model is there."""

import json

import pytest

from abridged.core.errors import AbridgedError
from abridged.data import rows as rows_module
from abridged.data.opening import RowData, open_data

LABELLED = [{"text": f"text {i}", "label": "good" if i % 3 else "bad"} for i in range(40)]


def write(path, rows=LABELLED):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def squad(folder):
    answer = {"text": "Arden", "answer_start": 12}
    paragraphs = [{"context": f"the town is Arden {i}", "qas": [{"question": "?", "answers": [answer]}]} for i in "ab"]
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (folder / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder


def test_what_data_are(tmp_path, text, monkeypatch):
    rows = write(tmp_path / "rows.jsonl")
    (tmp_path / "squad").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("some words\n" * 40)
    monkeypatch.setattr("datasets.load_dataset", lambda *names: {"train": LABELLED})
    kinds = {
        "text": [open_data(text), open_data(tmp_path / "texts"), open_data("wikitext-2")],
        "rows": [open_data(rows), open_data(rows, ("text", "label")), open_data("somebody/rows")],
        "questions": [open_data(squad(tmp_path / "squad")), open_data(tmp_path / "squad", task="squad")],
        "labels": [open_data(rows).as_labelled(), open_data("somebody/rows").as_labelled()],
        "pairs": [open_data(rows, ("text", "label")).as_pairs()],
    }
    assert {kind: {found.kind for found in some} for kind, some in kinds.items()} == {kind: {kind} for kind in kinds}
    assert open_data("somebody/rows").as_text().train.startswith("text 0\ntext 1\n")


def test_rows_are_read_once_whoever_asks_for_them(tmp_path, monkeypatch):
    opened = []
    path = write(tmp_path / "rows.jsonl")
    read = rows_module.rows
    monkeypatch.setattr(rows_module, "rows", lambda path: (opened.append(path), read(path))[1])
    data = open_data(path, ("text", "label"))
    assert data.as_labelled() is data.as_labelled()
    assert len(data.as_pairs().train) == 38
    assert len(data.as_labelled().train) == 36
    assert opened == [path]


def test_one_line_says_how_they_were_understood(tmp_path, text):
    path = write(tmp_path / "rows.jsonl", [*LABELLED, {"text": " ", "label": "bad"}])
    labelled = open_data(path).as_labelled()
    assert labelled.describe() == (
        f"{path}: labelled texts, text and label (bad 14, good 26); 36 to train on, 4 to choose by, tested on the "
        "same; 1 rows without text left out (line 41)"
    )
    assert "; 40 to measure; 1 rows" in labelled.describe(measured=True)
    described = open_data(text).describe()
    assert described.startswith(f"{text}: a text in characters; ")
    assert described.endswith(" to choose by, tested on the same")


def test_the_line_says_what_was_not_read(tmp_path):
    """Columns, files, and the rows that reach over lines, as a stray quotation mark makes them."""
    for name in ("train.csv", "test.csv", "more.csv"):
        (tmp_path / name).write_text(',text,label,id\n0,"a\nb\nc",x,7\n1,d,y,8\n')
    told = open_data(tmp_path, ("text", "label")).as_labelled().describe()
    assert "; not read: one without a name, id; rows of test.csv 2, train.csv 2; nothing of more.csv" in told
    assert told.endswith(f"; 2 rows of several lines, up to 3 from line 2 of {tmp_path}/train.csv on")


def test_no_more_labels_are_listed_than_a_line_holds(tmp_path):
    rows = [{"text": "a", "label": f"l{i:02}"} for i in range(50)]
    assert "l19 1 and 30 more); " in open_data(write(tmp_path / "rows.jsonl", rows)).as_labelled().describe()


def test_what_a_terminal_would_obey_is_spelled_out(tmp_path, capsys):
    rows = [{"text": "a", "label": label} for label in ("\x1b[2Jgood", "ba\u202ed")]
    open_data(write(tmp_path / "rows.jsonl", rows)).as_labelled().announce()
    told = capsys.readouterr().err
    assert r"(\x1b[2Jgood 1, ba\u202ed 1)" in told
    assert told.count("\n") == 1


def test_a_fingerprint_is_of_what_is_in_them_wherever_they_lie(tmp_path):
    first, same = write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl")
    other = write(tmp_path / "c.jsonl", [*LABELLED[:-1], {"text": "text 39", "label": "good"}])
    found = [open_data(path).as_labelled().fingerprint for path in (first, same, other)]
    assert found[0] == found[1] != found[2]
    assert open_data(first).as_text().fingerprint not in found


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        ("text.txt", "as_pairs", "holds a text, and pairs are wanted"),
        ("text.txt", "as_labelled", "holds a text, and labelled texts are wanted"),
        ("text.txt", "as_questions", "holds a text, and questions are wanted: give a folder with SQuAD's train-v1.1"),
        ("rows.jsonl", "as_questions", "holds rows, and questions are wanted"),
    ],
)
def test_what_they_are_not(content, read, message, tmp_path):
    (tmp_path / "text.txt").write_text("some words\n" * 40)
    write(tmp_path / "rows.jsonl")
    with pytest.raises(AbridgedError, match=message):
        getattr(open_data(tmp_path / content), read)()


@pytest.mark.parametrize(
    ("spec", "columns", "task", "message"),
    [
        ("nowhere.txt", None, None, "no such file or folder: .*nowhere.txt"),
        ("rows.jsonl", ("text", "lable"), None, "has no column 'lable': it has text, label"),
        ("text.txt", ("text", "label"), None, "is a text, which has no columns"),
        ("text.txt", None, "labels", "is a text, which has no columns"),
        ("rows.jsonl", None, "sst2", "no folder .* with the files of sst2"),
        ("rows.jsonl", None, "squad", r"has no train-v1\.1\.json"),
        ("empty.jsonl", None, None, "has no rows"),
    ],
)
def test_what_is_wrong_is_said_at_once(spec, columns, task, message, tmp_path):
    (tmp_path / "text.txt").write_text("some words\n" * 40)
    (tmp_path / "empty.jsonl").write_text("\n")
    write(tmp_path / "rows.jsonl")
    with pytest.raises(AbridgedError, match=message):
        open_data(tmp_path / spec, columns, task)


def test_three_columns_are_no_pairs(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"a": "x", "b": "y", "c": str(i)} for i in range(40)])
    data = open_data(path, ("a", "b", "c"))
    assert isinstance(data, RowData)
    assert data.as_labelled().train[0].second == "y"
    with pytest.raises(AbridgedError, match="learns from two columns, source and target, not from 3"):
        data.as_pairs()

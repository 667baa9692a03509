"""Pairs of texts: reading them from whatever holds them, tokenising, cutting and padding."""

import csv
import json

import numpy as np
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.pairs import (
    Pair,
    Specials,
    TokenPairs,
    pad,
    read_documents,
)

SPECIALS = Specials(before=(0,), after=(2,), start=2, pad=1)
ROWS = [{"document": f"text {i}", "summary": f"sum {i}", "id": i} for i in range(40)]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(str(path))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_pairs(suffix, tmp_path):
    path = write_rows(tmp_path / f"pairs{suffix}", ROWS)
    found = open_data(path).as_pairs()
    assert found.columns == ("document", "summary")
    assert found.train + found.validation == [Pair(f"text {i}", f"sum {i}") for i in range(40)]
    assert len(found.validation) == 2
    assert found.test is found.validation
    assert found.to_evaluate == found.train + found.validation
    assert open_data(path).has_pairs


def test_a_folder_has_its_parts_by_name(tmp_path):
    for split, rows in {"train": ROWS[:30], "dev": ROWS[30:35], "test": ROWS[35:]}.items():
        write_rows(tmp_path / f"{split}.jsonl", rows)
    found = open_data(tmp_path).as_pairs()
    assert [len(part) for part in (found.train, found.validation, found.test)] == [30, 5, 5]
    assert found.to_evaluate == found.test


def test_columns_can_be_named_and_references_come_along(tmp_path):
    rows = [{"id": "7", "summary": "s", "references": ["a", " ", 3, "b "]}] * 2
    path = write_rows(tmp_path / "rows.jsonl", rows)
    found = open_data(path, ("id", "summary")).as_pairs()
    assert found.train == [Pair("7", "s", ("a", "b"))]
    assert not open_data(path).has_pairs
    assert open_data(path, ("id", "summary")).has_pairs


def test_rows_without_both_texts_are_dropped_and_counted(tmp_path):
    rows = [*ROWS, {"document": " ", "summary": "x"}, {"document": "x", "summary": None}]
    found = open_data(write_rows(tmp_path / "rows.jsonl", rows)).as_pairs()
    assert found.dropped == 2
    assert len(found.train + found.validation) == 40


def test_a_reference_that_is_missing_in_a_row_is_dropped_and_a_missing_column_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*ROWS, {"document": "x"}])
    with pytest.raises(AbridgedError, match="has no column 'summary': it has document"):
        open_data(path).as_pairs()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"a": "b"}\n', "has the columns a: say which are source and target"),
        ('{"document": "", "summary": "b"}\n', "no row of .* has both a document and a summary"),
        ("{nonsense\n", "cannot read rows from"),
        ('["document", "summary"]\n', "line 1 is not an object"),
    ],
)
def test_files_that_hold_no_pairs(content, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(AbridgedError, match=message):
        open_data(tmp_path / "rows.jsonl").as_pairs()


def test_what_is_not_there():
    with pytest.raises(AbridgedError, match="no such file or folder"):
        open_data("nowhere.csv").as_pairs()
    with pytest.raises(AbridgedError, match="no such file"):
        read_documents(__import__("pathlib").Path("nowhere.txt"))


def test_an_unknown_dataset(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *names: (_ for _ in ()).throw(ValueError("not here\nmore")))
    with pytest.raises(AbridgedError, match=r"no pairs called 'somebody/pairs'.*\(not here\)"):
        open_data("somebody/pairs", ("a", "b"))


def test_a_dataset_by_name(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {"train": ROWS[:30], "test": ROWS[30:]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    found = open_data("xsum").as_pairs()
    assert asked == [("EdinburghNLP/xsum", None)]
    assert (len(found.train), len(found.validation), len(found.test)) == (28, 2, 10)
    open_data("owner/name:part", ("document", "summary")).as_pairs()
    assert asked[1] == ("owner/name", "part")


def test_documents_of_a_file(tmp_path):
    (tmp_path / "one.txt").write_text("a\nb")
    assert read_documents(tmp_path / "one.txt") == ["a\nb"]
    rows = write_rows(tmp_path / "rows.csv", ROWS[:2])
    assert read_documents(rows) == ["text 0", "text 1"]
    assert read_documents(rows, "id") == ["0", "1"]
    with pytest.raises(AbridgedError, match="has no column 'body': it has document, summary, id"):
        read_documents(rows, "body")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(AbridgedError, match="cannot read"):
        read_documents(tmp_path / "bytes.txt")


def test_padding_never_counts_and_the_decoder_reads_what_came_before():
    sources = [np.array([0, 9, 8, 7, 2]), np.array([0, 9, 2])]
    targets = [np.array([0, 5, 2]), np.array([0, 5, 6, 7, 2])]
    batch = pad(sources, targets, torch.tensor([3, 4]), SPECIALS)
    assert batch.source_ids.shape == batch.input_ids.shape == (2, 8)
    assert batch.source_ids[1].tolist() == [0, 9, 2, 1, 1, 1, 1, 1]
    assert batch.source_mask.sum(1).tolist() == [5, 3]
    assert batch.input_ids[0].tolist() == [2, 0, 5, 1, 1, 1, 1, 1]
    assert batch.labels[0].tolist() == [0, 5, 2, -100, -100, -100, -100, -100]
    assert batch.counted.sum(1).tolist() == [3, 5]
    for row, target in enumerate(targets):  # what is read at t is the label of t - 1
        assert batch.input_ids[row, 1 : len(target)].tolist() == target[:-1].tolist()


def test_what_is_too_long_is_cut_and_counted(tokenizer):
    pairs = [Pair("a long source " * 20, "short"), Pair("short", "a long target " * 20)]
    found = TokenPairs.of(pairs, tokenizer, Specials.of(tokenizer, Config), 16, 8)
    assert (found.source_cut, found.target_cut) == (1, 1)
    assert len(found.sources[0]) == 16
    assert len(found.targets[1]) == found.context == 8
    assert found.sources[0][0] == 0
    assert found.sources[0][-1] == 2
    one = found.batch(torch.tensor([1]))  # a batch of one
    assert one.source_ids.shape[0] == 1


def test_no_pairs_left(tokenizer):
    with pytest.raises(AbridgedError, match="no pairs to learn from"):
        TokenPairs.of([], tokenizer, SPECIALS, 16, 8)


def test_special_tokens_are_those_of_the_tokenizer(tokenizer):
    assert Specials.of(tokenizer, Config) == SPECIALS

    class Bare:
        decoder_start_token_id = None

    with pytest.raises(AbridgedError, match="no decoder_start_token_id"):
        Specials.of(tokenizer, Bare)


def test_another_text_is_another_fingerprint(tokenizer):
    def fingerprint(*pairs):
        return TokenPairs.of([Pair(*p) for p in pairs], tokenizer, SPECIALS, 32, 32).fingerprint()

    prints = {
        fingerprint(("a", "b")),
        fingerprint(("b", "a")),
        fingerprint(("a", "b"), ("a", "b")),
        fingerprint(("ab", "")),
    }
    assert len(prints) == 4


class Config:
    decoder_start_token_id = 2
    pad_token_id = 1

"""Labelled texts: GLUE's files as they are published, and a person's own."""

import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.labelled import GLUE, Labelled, TokenSentences, load_glue, read_texts
from abridged.data.opening import open_data

#: The first lines of each task's files.
FILES = {
    "sst2": ("train.tsv", "sentence\tlabel\n{}\t1\n{}\t0\n"),
    "cola": ("train.tsv", "gj04\t1\t\t{}\ngj04\t0\t*\t{}\n"),
    "mrpc": (
        "msr_paraphrase_train.txt",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t{}\tx\n0\t7\t8\t{}\tx\n",
    ),
    "rte": ("train.tsv", "index\tsentence1\tsentence2\tlabel\n0\t{}\tx\tnot_entailment\n1\t{}\tx\tentailment\n"),
    "stsb": ("train.tsv", "index\tsentence1\tsentence2\tscore\n0\t{}\tx\t5.000\n1\t{}\tx\t2.5\n"),
    "qnli": ("train.tsv", "index\tquestion\tsentence\tlabel\n0\t{}\tx\tentailment\n1\t{}\tx\tnot_entailment\n"),
    "qqp": ("train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\t{}\tx\t0\n0\t1\t2\t{}\tx\t1\n"),
    "mnli": ("train.tsv", "index\tsentence1\tsentence2\tgold_label\n0\t{}\tx\tneutral\n1\t{}\tx\tcontradiction\n"),
}
TEST = {"mrpc": "msr_paraphrase_test.txt", "mnli": "dev_matched.tsv"}
TEXT = 'it \'s "a" charm'


def write_task(folder, task):
    name, content = FILES[task]
    (folder / name).write_text(
        content.format(TEXT, "other") * 10 if task == "cola" else grown(content), encoding="utf-8"
    )
    (folder / TEST.get(task, "dev.tsv")).write_text(content.format("unseen", "other"), encoding="utf-8")
    return folder


def grown(content):
    head, _, rows = content.partition("\n")
    return head + "\n" + rows.format(TEXT, "other") * 10


@pytest.mark.parametrize("task", GLUE)
def test_every_task_as_published(task, tmp_path):
    found = load_glue(write_task(tmp_path, task), task)
    assert (len(found.train), len(found.validation), len(found.test)) == (18, 2, 2)
    assert TEXT in {row.first for row in found.train}
    assert {row.second for row in found.train} == {None if GLUE[task].second is None else "x"}
    assert found.labels == GLUE[task].labels
    assert found.test[0].first == "unseen"
    assert isinstance(found.train[0].label, float if task == "stsb" else str)


def test_what_is_held_out_is_the_same_each_time_and_none_of_the_rest(tmp_path):
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(50))
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + rows)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nx\t1\n")
    first, again, other = (load_glue(tmp_path, "sst2", seed=seed) for seed in (0, 0, 1))
    assert first.validation == again.validation != other.validation
    assert len(first.validation) == 5
    assert not {row.first for row in first.train} & {row.first for row in first.validation}


def test_the_hubs_glue(monkeypatch):
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "label": i % 2} for i in range(20)]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names: {"train": rows, "validation": rows[:3], "test": rows[:5]}
    )
    found = load_glue("glue", "rte")
    assert found.test[1] == Labelled("a 1", "b", "not_entailment")
    assert len(load_glue("glue", "mrpc").test) == 5


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", None, "has no rows"),
        ("a\tb\nx\t-1\ny\t-1.0\n", None, "labels '-1', in line 2 .*, and '-1.0', in line 3 .*, which are one number"),
        ("x\t1\ny\t1\nz\t0\n", None, "first line of .* has the label '1', and must name the columns"),
        ("a\tb\n" + "".join(f"x\t{i}\n" for i in range(30)) + "x\tinf\n", None, "score 'inf', .* in line 32"),
        ("a\tb\nx\t1\ny\t2\n", ("a", "c"), "has no column 'c': it has a, b"),
        ("a\tb\n\t1\n\t2\n", None, "has no row with a, b"),
    ],
)
def test_own_files_that_hold_no_labelled_texts(content, columns, message, tmp_path):
    (tmp_path / "own.tsv").write_text(content)
    with pytest.raises(AbridgedError, match=message):
        open_data(tmp_path / "own.tsv", columns).as_labelled()


def test_one_label_is_enough_to_measure_on_and_too_few_to_learn(tmp_path):
    (tmp_path / "own.tsv").write_text("a\tb\nx\t1\ny\t1\n")
    found = open_data(tmp_path / "own.tsv").as_labelled()
    assert (found.labels, found.metrics, len(found.to_evaluate)) == (("1",), ("accuracy",), 2)
    with pytest.raises(AbridgedError, match="fewer than two different labels in its column 'b'"):
        found.check_to_learn()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ((0, 1), ("0", "1")),
        ((False, True), ("False", "True")),
        ((0.0, 1.0, math.nan), ("0", "1")),
        ((0, 1, None), ("0", "1")),
    ],
)
def test_zero_and_false_are_labels_and_texts_like_any_other_and_nan_is_none(suffix, values, labels, tmp_path):
    rows = [{"text": value, "label": value} for value in values] * 20
    path = tmp_path / f"own{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = open_data(path).as_labelled()
    assert found.labels == labels
    assert {(row.first, row.label) for row in found.to_evaluate} == {(label, label) for label in labels}
    assert (len(found.to_evaluate), found.dropped) == (40, 20 * (len(values) - 2))


def test_nan_is_no_label_and_a_dash_may_be_one(tmp_path):
    (tmp_path / "own.csv").write_text("text,label\n" + "a,-\nb,+\nc,nan\nd,NaN\n" * 5)
    found = open_data(tmp_path / "own.csv").as_labelled()
    assert found.labels == ("+", "-")
    assert found.left_out == {
        "without label": [f"line {n} of {tmp_path}/own.csv" for n in sorted([*range(4, 22, 4), *range(5, 22, 4)])]
    }


def test_own_files(tmp_path):
    rows = "".join(f"text {i}\t{'yes' if i % 3 else 'no'}\n" for i in range(40))
    (tmp_path / "own.tsv").write_text("text\tlabel\n" + rows + " \tno\nx\t\n")
    found = open_data(tmp_path / "own.tsv").as_labelled()
    assert found.labels == ("no", "yes")
    assert found.metrics == ("accuracy", "f1")
    assert (len(found.train), len(found.validation), found.dropped) == (36, 4, 2)
    assert found.test is found.validation
    three = [{"a": "x", "b": f"y{i}", "c": i / 7} for i in range(40)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in three))
    scores = open_data(tmp_path / "own.jsonl", ("a", "b", "c")).as_labelled()
    assert scores.labels is None
    assert scores.metrics == ("pearson", "spearman")
    assert {row.second for row in scores.train} <= {f"y{i}" for i in range(40)}


@pytest.mark.parametrize(("numbers", "scores"), [(5, False), (20, False), (21, True)])
def test_few_numbers_are_labels_such_as_stars_and_many_are_scores(numbers, scores, tmp_path):
    rows = "".join(f"text {i}\t{1 + i % numbers}\n" for i in range(60))
    (tmp_path / "stars.tsv").write_text("text\tstars\n" + rows)
    found = open_data(tmp_path / "stars.tsv").as_labelled()
    assert (found.labels is None) == scores
    assert found.metrics == (("pearson", "spearman") if scores else ("accuracy",))
    assert len(found.labels or ()) == (0 if scores else numbers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentence\tlabel\nx\t7\n", "has the label '7', which is none of 0, 1"),
        ("sentence\tother\nx\t1\n", "has no row with sentence, label"),
    ],
)
def test_files_of_a_task_that_are_not_its(content, message, tmp_path):
    (tmp_path / "train.tsv").write_text(content)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nx\t1\n")
    with pytest.raises(AbridgedError, match=message):
        load_glue(tmp_path, "sst2")


def test_a_task_that_is_none_and_a_folder_without_its_files(tmp_path):
    with pytest.raises(AbridgedError, match="no task called 'sst3': there are sst2, cola"):
        load_glue(tmp_path, "sst3")
    with pytest.raises(AbridgedError, match=r"has no train\.tsv"):
        load_glue(tmp_path, "sst2")
    with pytest.raises(AbridgedError, match="no folder nowhere"):
        load_glue("nowhere", "sst2")


def test_batches_hide_their_padding(tokenizer):
    rows = [Labelled("One line.", "Yes.", "b"), Labelled("Another line, which is longer, of the same text!", "No", "a")]
    found = TokenSentences.of(rows, tokenizer, {"a": 0, "b": 1}, 64)
    batch = found.batch(torch.tensor([0, 1]))
    assert batch.labels.tolist() == [1, 0]
    assert batch.attention_mask.sum(1).tolist() == [len(ids) for ids in found.ids]
    assert torch.equal(batch.counted, batch.attention_mask.bool())
    assert batch.input_ids.shape[1] % 8 == 0
    cut = TokenSentences.of(rows, tokenizer, {"a": 0, "b": 1}, 8)
    assert cut.cut == 2
    assert max(map(len, cut.ids)) == 8
    scores = TokenSentences.of([Labelled("x", None, 2.5)], tokenizer, None, 8)
    assert scores.batch(torch.tensor([0])).labels.dtype == torch.float32
    assert np.allclose(scores.labels, [2.5])


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo\n")
    assert read_texts(path) == (["one", "", "two"], None)
    path.write_bytes(b"\xef\xbb\xbf" + "one\u2028\x0c more\r\ntwo\x85".encode())
    assert read_texts(path) == (["one\u2028\x0c more", "two\x85"], None)
    path.write_text("one\tuno\ntwo\tdue\n")
    assert read_texts(path) == (["one", "two"], ["uno", "due"])
    path.write_text("one\tuno\ntwo\n")
    with pytest.raises(AbridgedError, match="with and without a tab"):
        read_texts(path)
    path.write_text("\n")
    with pytest.raises(AbridgedError, match="has no text"):
        read_texts(path)

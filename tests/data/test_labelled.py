"""Labelled texts: GLUE's files as they are published, and a person's own."""

import json

import numpy as np
import pytest
import torch

from abridged.data.labelled import GLUE, Labelled, TokenSentences, load_labelled, read_texts
from abridged.errors import AbridgedError

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
    found = load_labelled(write_task(tmp_path, task), task)
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
    first, again, other = (load_labelled(tmp_path, "sst2", seed=seed) for seed in (0, 0, 1))
    assert first.validation == again.validation != other.validation
    assert len(first.validation) == 5
    assert not {row.first for row in first.train} & {row.first for row in first.validation}


def test_the_hubs_glue(monkeypatch):
    rows = [{"sentence1": f"a {i}", "sentence2": "b", "label": i % 2} for i in range(20)]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *names: {"train": rows, "validation": rows[:3], "test": rows[:5]}
    )
    found = load_labelled("glue", "rte")
    assert found.test[1] == Labelled("a 1", "b", "not_entailment")
    assert len(load_labelled("glue", "mrpc").test) == 5


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", None, "has no rows"),
        ("a\tb\nx\t1\ny\t1\n", None, "fewer than two different labels in its column 'b'"),
        ("a\tb\nx\t1\ny\t2\n", ("a", "c"), "has no column 'c': it has a, b"),
        ("a\tb\n\t1\n\t2\n", None, "has no row with a, b"),
    ],
)
def test_own_files_that_hold_no_labelled_texts(content, columns, message, tmp_path):
    (tmp_path / "own.tsv").write_text(content)
    with pytest.raises(AbridgedError, match=message):
        load_labelled(tmp_path / "own.tsv", None, columns)


def test_own_files(tmp_path):
    rows = "".join(f"text {i}\t{'yes' if i % 3 else 'no'}\n" for i in range(40))
    (tmp_path / "own.tsv").write_text("text\tlabel\n" + rows + " \tno\nx\t\n")
    found = load_labelled(tmp_path / "own.tsv")
    assert found.labels == ("no", "yes")
    assert found.metrics == ("accuracy", "f1")
    assert (len(found.train), len(found.validation), found.dropped) == (36, 4, 2)
    assert found.test is found.validation
    three = [{"a": "x", "b": f"y{i}", "c": i / 7} for i in range(40)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in three))
    scores = load_labelled(tmp_path / "own.jsonl", None, ("a", "b", "c"))
    assert scores.labels is None
    assert scores.metrics == ("pearson", "spearman")
    assert {row.second for row in scores.train} <= {f"y{i}" for i in range(40)}


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
        load_labelled(tmp_path, "sst2")


def test_a_task_that_is_none_and_a_folder_without_its_files(tmp_path):
    with pytest.raises(AbridgedError, match="no task called 'sst3': there are sst2, cola"):
        load_labelled(tmp_path, "sst3")
    with pytest.raises(AbridgedError, match=r"has no train\.tsv"):
        load_labelled(tmp_path, "sst2")
    with pytest.raises(AbridgedError, match="no folder nowhere"):
        load_labelled("nowhere", "sst2")


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
    path.write_text("one\tuno\ntwo\tdue\n")
    assert read_texts(path) == (["one", "two"], ["uno", "due"])
    path.write_text("one\tuno\ntwo\n")
    with pytest.raises(AbridgedError, match="with and without a tab"):
        read_texts(path)
    path.write_text("\n")
    with pytest.raises(AbridgedError, match="has no text"):
        read_texts(path)

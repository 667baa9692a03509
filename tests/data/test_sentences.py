"""Sentences from every kind of file, and the weights by which their tokens become one vector."""

import json

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.sentences import TokenTexts, pooling_weights
from abridged.models.load import load_tokenizer
from embedders import embedder, sentences

LINES = sentences(40)


def all_of(data):
    return sorted(data.train + data.validation)


def test_lines_rows_and_columns_hold_the_same_sentences(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f" {line} " for line in LINES))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": line, "n": 1}) + "\n" for line in LINES))
    (tmp_path / "c.csv").write_text("id,body\n" + "".join(f"{i},{line}\n" for i, line in enumerate(LINES)))
    found = [open_data(tmp_path / name).as_sentences() for name in ("a.txt", "b.jsonl")]
    found.append(open_data(tmp_path / "c.csv", ("body",)).as_sentences())
    assert all(all_of(one) == sorted(LINES) for one in found)
    assert len(found[0].train) == 38
    assert not set(found[0].train) & set(found[0].validation)
    assert "not read: id" in found[2].read


def test_what_is_twice_is_left_out_and_what_is_tested_on_not_learned(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join([*LINES[:20], LINES[3], LINES[30]]))
    (tmp_path / "test.txt").write_text("\n".join(LINES[30:]))
    found = open_data(tmp_path).as_sentences()
    assert found.test == LINES[30:]
    assert all_of(found) == sorted(LINES[:20])
    assert len(found.left_out["that repeat another"]) == 2
    assert found.dropped == 2


def test_pairs_with_scores_are_read_from_a_file_or_a_folder_of_glue(tmp_path):
    rows = [f"{i}\t{LINES[i]}\t{LINES[i + 1]}\t{i / 4}\n" for i in range(20)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("index\tsentence1\tsentence2\tscore\n" + "".join(rows))
    alone = open_data(tmp_path / "dev.tsv", task="stsb").as_sentences()
    assert len(alone.scored_to_evaluate) == 20
    assert all_of(alone) == sorted(LINES[:21])
    folder = open_data(tmp_path, task="stsb").as_sentences()
    assert [pair.score for pair in folder.scored_to_evaluate] == [i / 4 for i in range(20)]
    assert folder.has_test
    (tmp_path / "own.csv").write_text("a,b,c\n" + "".join(f"{LINES[i]},{LINES[i + 1]},{i % 3}\n" for i in range(9)))
    own = open_data(tmp_path / "own.csv", task="stsb").as_sentences()
    assert sorted(pair.score for pair in own.scored_to_evaluate) == [0.0] * 3 + [1.0] * 3 + [2.0] * 3


@pytest.mark.parametrize(
    ("name", "content", "columns", "task", "message"),
    [
        ("a.txt", "\n \n", None, None, "the text '.*' is empty"),
        ("a.txt", "one alone\n", None, None, "has one sentence to learn from: give 4 or more"),
        ("a.txt", "one alone\n" * 9, None, None, "has one sentence to learn from: give 4 or more"),
        ("a.csv", "body,id\na,1\n", None, None, "has the columns body, id: say which holds the sentences"),
        ("a.csv", "body,id\na,1\n", ("text",), None, "has no column 'text': it has body, id"),
        ("a.csv", "text,id\n ,1\n", None, None, "holds no sentence"),
        ("a.tsv", "a\tb\n", None, "stsb", "has no rows"),
        ("a.tsv", "a\tb\nx\ty\n", None, "stsb", "has the columns a, b: say which are two texts and their score"),
        ("a.tsv", "x\ty\t2.5\nx\ty\t3\n", None, "stsb", "has the score '2.5', and must name the columns"),
        ("a.tsv", "a\tb\tc\nx\ty\tmuch\n", None, "stsb", "the score 'much', which is no number"),
        ("a.tsv", "a\tb\tc\nx\ty\t1\n", ("a", "b", "d"), "stsb", "has no column 'd'"),
    ],
)
def test_bad_input_is_one_sentence(name, content, columns, task, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(AbridgedError, match=message):
        open_data(tmp_path / name, columns, task).as_sentences().check_to_learn()


@pytest.mark.parametrize(
    ("pooling", "skip", "wanted"),
    [
        ("mean", 0, [[1 / 3, 1 / 3, 1 / 3, 0], [1 / 2, 1 / 2, 0, 0]]),
        ("mean", 1, [[0, 1 / 2, 1 / 2, 0], [0, 1, 0, 0]]),
        ("cls", 0, [[1, 0, 0, 0], [1, 0, 0, 0]]),
        ("cls", 1, [[0, 1, 0, 0], [0, 1, 0, 0]]),
        ("lasttoken", 0, [[0, 0, 1, 0], [0, 1, 0, 0]]),
        ("weightedmean", 0, [[1 / 6, 2 / 6, 3 / 6, 0], [1 / 3, 2 / 3, 0, 0]]),
        ("mean_sqrt_len_tokens", 0, [[3**-0.5] * 3 + [0], [2**-0.5] * 2 + [0, 0]]),
    ],
)
def test_weights_of_tokens(pooling, skip, wanted):
    found = pooling_weights(torch.tensor([3, 2]), 4, pooling, skip)
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float32))


def test_long_texts_are_cut_and_counted_and_a_prompt_need_not_be_pooled(tmp_path):
    tokenizer = load_tokenizer(embedder(tmp_path / "m"))
    found = TokenTexts.of([LINES[0], " ".join(LINES)], tokenizer, 32, "mean")
    assert (found.cut, [len(ids) <= 32 for ids in found.ids]) == (1, [True, True])
    assert found.ids[1][-1] == found.ids[0][-1]  # what ends a text ends one that was cut, too
    pooled = TokenTexts.of([" red sea"], tokenizer, 32, "mean", prompt="old man", pool_prompt=False)
    ids = pooled.ids[0].tolist()
    weights = pooled.batch(torch.tensor([0])).pooling[0]
    counted = [token for token, weight in zip(ids, weights.tolist(), strict=False) if weight]
    assert counted == [*tokenizer(" red sea", add_special_tokens=False)["input_ids"], ids[-1]]

"""Words with tags: files of columns, rows, and which token of a word has its label."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.data.opening import open_data
from abridged.data.tag_files import tagged_of_hub
from abridged.data.tagged import Tagged, TaggedData, TokenTags, first_tokens

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
# # O O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
IDS = {"B-LOC": 0, "I-LOC": 1, "O": 2}


def read(path, content, task=None, columns=None):
    path.write_text(content)
    return open_data(path, columns, task)


def every(data):
    return {(one.text, one.tags) for one in (*data.train, *data.validation)}


def test_columns_of_conll_are_words_and_tags(tmp_path):
    data = read(tmp_path / "a.conll", CONLL)
    assert isinstance(data, TaggedData)
    assert every(data) == {("EU rejects #", ("B-ORG", "O", "O")), ("Peter Blackburn", ("B-PER", "I-PER"))}
    assert data.tags == ("B-ORG", "B-PER", "I-PER", "O")
    assert data.train[0].words == data.train[0].text.split()
    assert "(B-ORG 1, B-PER 1, I-PER 1, O 2)" in data.describe()
    other = read(tmp_path / "a.txt", CONLL, "tokens", ("0", "1"))
    assert other.tags == ("#", "NNP", "VBZ")


def test_tabs_part_columns_where_there_are_some_and_comments_are_passed_over(tmp_path):
    text = "# text = New York it is\n1\tNew York\tB-LOC\n2\tis\tO\n\n# another\n1\tit\tO\n"
    data = read(tmp_path / "a.tsv", text, "tokens", ("1", "2"))
    assert every(data) == {("New York is", ("B-LOC", "O")), ("it", ("O",))}
    assert [one.words for one in (*data.train, *data.validation) if len(one.tags) == 2] == [["New York", "is"]]


def test_parts_are_told_by_the_names_of_files(tmp_path):
    for part in ("train", "testa", "testb"):
        (tmp_path / f"eng.{part}").write_text(f"{part} O\n\nword B-LOC\n")
    data = open_data(tmp_path, task="tokens")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2, 2, 2]
    assert (data.train[0].text, data.validation[0].text, data.test[0].text) == ("train", "testa", "testb")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\nrejects VBZ O\n", "line 2 of .* has 3 columns, and the lines before have 2"),
        ("EU\n", "has no word and tag in the columns of its line 1, 'EU'"),
        ("\n\n-DOCSTART- O\n", "holds no words with tags"),
        ("EU\tB-ORG\n\tO\n", "line 2 of .* has no word"),
    ],
)
def test_a_file_that_has_no_such_columns_is_refused(content, message, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        read(tmp_path / "a.conll", content)


@pytest.mark.parametrize("columns", [("0",), ("word", "tag"), ("0", "9"), ("-1", "0")])
def test_columns_of_a_file_are_two_numbers_that_it_has(columns, tmp_path):
    with pytest.raises(AbridgedError, match="two columns|have numbers|no word and tag"):
        read(tmp_path / "a.conll", CONLL, "tokens", columns)


def test_rows_with_two_lists_are_known_as_such(tmp_path):
    rows = [{"id": 1, "tokens": ["New", "York"], "ner_tags": ["B-LOC", "I-LOC"]}, {"tokens": [], "ner_tags": []}]
    rows.append({"id": 3, "tokens": ["is"], "ner_tags": ["O"]})
    data = read(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert every(data) == {("New York", ("B-LOC", "I-LOC")), ("is", ("O",))}
    assert "1 rows without tokens left out (line 2)" in data.describe()


def test_lists_in_a_table_are_text(tmp_path):
    rows = ["tokens,tags", '"[""New"", ""York""]","[\'B-LOC\', \'I-LOC\']"', "it is,O O"]
    data = read(tmp_path / "a.csv", "\n".join(rows), "tokens")
    assert every(data) == {("New York", ("B-LOC", "I-LOC")), ("it is", ("O", "O"))}


def test_numbers_are_called_as_the_features_say(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=list(IDS)))})
    split = Dataset.from_dict({"tokens": [["New", "York"], ["is"]], "ner_tags": [[0, 1], [2]]}, features=features)
    expected = {("New York", ("B-LOC", "I-LOC")), ("is", ("O",))}
    assert every(tagged_of_hub("name", {"train": split})) == expected
    split.to_parquet(tmp_path / "a.parquet")
    assert every(open_data(tmp_path / "a.parquet")) == expected
    table = pyarrow.table({"tokens": [["New", "York"]], "ner_tags": [[0, 1]]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert open_data(tmp_path / "b.parquet").tags == ("0", "1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1 of .* has 2 words in 'tokens' and 1 tags in 'tags'"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "line 1 of .* has an empty word"),
        ({"tokens": ["a"], "tags": [None]}, "a tag that is neither a text nor a number"),
        ({"text": "a", "label": "b"}, "say which hold words and their tags"),
    ],
)
def test_rows_that_are_not_whole_are_refused(row, message, tmp_path):
    with pytest.raises(AbridgedError, match=message):
        read(tmp_path / "a.jsonl", json.dumps(row) + "\n", "tokens")


@pytest.mark.parametrize("text", ["New York's rain-gauge, Straße 5.", "北京 is not Paris", "a  b", "", "  "])
def test_words_of_a_text_that_nobody_has_split(text):
    words = Tagged.of_text(text).words
    assert "".join(words) == "".join(text.split())
    assert Tagged.of_text("Coca-Cola in 北京, U.S.A.").words == ["Coca-Cola", "in", "北", "京", ",", "U.S.A", "."]


def test_the_first_token_of_a_word_has_its_label_and_no_other(tokenizer):
    text = Tagged.of_words(["longer", "lines", "xyz", "of"], ["B-LOC", "O", "O", "I-LOC"])
    found = TokenTags.of([text], tokenizer, IDS, 64)
    pieces = tokenizer.convert_ids_to_tokens(found.ids[0].tolist())
    assert len(pieces) > 4 + 2
    begins = np.flatnonzero(found.tags[0] != -100)
    assert begins.tolist() == found.firsts[0].tolist()
    assert [tokenizer.decode(some).strip() for some in np.split(found.ids[0][:-1], begins)[1:]] == text.words
    assert found.tags[0][begins].tolist() == [0, 2, 2, 1]
    batch = found.batch(torch.tensor([0]))
    assert batch.labels.shape == batch.input_ids.shape
    assert batch.labelled.sum() == 4
    assert batch.counted.sum() == len(pieces)


def test_what_is_cut_off_has_no_token(tokenizer):
    text = Tagged.of_words(["longer", "lines"] * 10, ["O"] * 20)
    found = TokenTags.of([text, Tagged.of_words(["a"], ["O"])], tokenizer, IDS, 12)
    assert found.cut == 1
    assert len(found.ids[0]) == 12
    assert (found.firsts[0] >= 0).sum() < 20
    assert (found.firsts[0][-5:] == -1).all()


def test_a_space_alone_is_no_words_token():
    """Offsets of a token that is a space, of one with the space before it, of special ones, and of a part of a word."""
    spans = ((0, 2), (3, 5), (6, 9))
    assert first_tokens(spans, [(0, 0), (0, 2), (2, 3), (3, 5), (5, 7), (7, 9), (0, 0)]).tolist() == [1, 3, 4]
    assert first_tokens(spans, [(0, 0), (0, 2), (2, 5)]).tolist() == [1, 2, -1]
    assert first_tokens((), [(0, 0)]).tolist() == []


def test_the_hash_is_of_tags_too(tokenizer):
    one, other = (TokenTags.of([Tagged.of_words(["a"], [tag])], tokenizer, IDS, 12) for tag in ("O", "B-LOC"))
    assert one.fingerprint() != other.fingerprint()

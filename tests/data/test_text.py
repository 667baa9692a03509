"""Text by name, by path and by folder, in its three parts."""

import json
import lzma

import pytest

from abridged.core.errors import AbridgedError
from abridged.data.text import count_words, load_text, sentences

LINES = [f"line {i} of the text" for i in range(100)]
TEXT = "\n".join(LINES) + "\n"


def test_bundled_wikitext_2_is_whole():
    text = load_text("wikitext-2")
    assert count_words(text.test) == 245_569  # the usual count for perplexity per word
    assert count_words(text.validation) == 217_646
    assert count_words(text.train) == 2_088_628
    assert text.split
    assert text.to_evaluate == text.test


@pytest.mark.parametrize(("text", "words"), [("", 0), ("a b\n", 3), ("a  b", 2), ("\n\n", 2), (" a\nb\n", 4)])
def test_words_are_what_whitespace_separates_and_line_ends(text, words):
    assert count_words(text) == words


def write_jsonl(path):
    path.write_text("\n".join(json.dumps({"text": line}) for line in LINES) + "\n\n")


def write_parquet(path):
    from datasets import Dataset

    Dataset.from_dict({"text": LINES}).to_parquet(str(path))


WRITERS = {
    "text.txt": lambda path: path.write_text(TEXT),
    "text.tokens": lambda path: path.write_text(TEXT),
    "text.txt.xz": lambda path: path.write_bytes(lzma.compress(TEXT.encode())),
    "text.jsonl": write_jsonl,
    "text.parquet": write_parquet,
}


def test_a_line_ends_where_the_file_says_so_and_nowhere_else(tmp_path):
    """A mark of the byte order is no text, and U+2028, a form feed or U+0085 part no lines."""
    whole = "one.\u2028 two\x0c three\x85 four five six\n"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode()))
    assert load_text(tmp_path / "a.txt").to_evaluate == load_text(tmp_path / "b.txt.xz").to_evaluate == whole
    assert sentences("= a \u2028= b c d e.\nf g h i")[-1] == "f g h i"
    assert len(sentences("a b c\x0cd e")) == 1


def test_texts_of_rows_are_their_column_whatever_holds_them(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"one, two",0\nthree,1\n')
    (tmp_path / "a.tsv").write_text("text\tlabel\none, two\t0\nthree\t1\n")
    (tmp_path / "a.json").write_text('[{"text": "one, two"}, {"text": "three"}]')
    assert {load_text(tmp_path / f"a.{kind}").to_evaluate for kind in ("csv", "tsv", "json")} == {"one, two\nthree"}


def test_what_a_folder_gave_is_told(tmp_path):
    for name in ("train-a.txt", "valid.txt", "notes.txt"):
        (tmp_path / name).write_text(name * 10)
    told = load_text(tmp_path).describe()
    assert told.endswith("; characters of train-a.txt 110, valid.txt 90; nothing of notes.txt")
    (tmp_path / "train-test.txt").write_text("a")
    with pytest.raises(AbridgedError, match=r"path of .*train-test.txt names two parts, train and test"):
        load_text(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_the_same_text(tmp_path, name):
    WRITERS[name](tmp_path / name)
    for where in (tmp_path / name, tmp_path):
        text = load_text(where)
        assert text.to_evaluate.strip() == TEXT.strip()


def test_a_text_without_parts_has_its_last_twentieth_held_out(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    text = load_text(tmp_path / "text.txt")
    assert text.train + text.validation == TEXT
    assert text.train.endswith("\n")
    assert 0.04 < len(text.validation) / len(TEXT) < 0.06
    assert text.test == text.validation  # what is measured after training was not trained on


def test_a_folder_is_read_by_the_words_of_its_file_names(tmp_path):
    for name in ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens", "latest.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    text = load_text(tmp_path)
    assert (text.train, text.validation, text.test) == ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
    assert text.split


def test_a_folder_of_folders(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(2):
            (tmp_path / part / f"{i}.txt").write_text(f"{part} {i}\n" * 20)
    text = load_text(tmp_path)
    assert text.train.count("\n") + text.validation.count("\n") == 41
    assert text.test.startswith("test 0")


def test_files_of_a_folder_without_parts_are_one_text(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first\n" * 30)
    assert load_text(tmp_path).to_evaluate == "first\n" * 30 + "\nsecond"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n ", "is empty"),
        ("binary.txt", b"\xff\xfe\x00", "cannot read .*binary.txt: not UTF-8 text .invalid start byte at byte 0"),
        ("broken.txt.xz", b"not compressed", "cannot read .*broken.txt.xz: Input format not supported"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "cannot read rows from .*broken.jsonl: line 2: Expecting value"),
        ("other.jsonl", b'{"words": "a"}\n', "line 1 of .*other.jsonl has no text in a column 'text': it has words"),
        ("list.jsonl", b"[1]\n", "line 1 is not an object"),
        ("broken.parquet", b"PAR1", "cannot read rows from"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AbridgedError, match=message) as error:
        load_text(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_parquet_file_without_a_text_column(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"words": ["a"]}).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(AbridgedError, match=r"row 1 of .*a\.parquet has no text in a column 'text': it has words"):
        load_text(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["nowhere.txt", "./nowhere", "/nowhere/at/all"])
def test_a_missing_path(name):
    with pytest.raises(AbridgedError, match="no such file or folder"):
        load_text(name)


def test_an_empty_folder(tmp_path):
    with pytest.raises(AbridgedError, match="holds no .txt"):
        load_text(tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AbridgedError, match="no text called 'wikitext-3'.*wikitext-2, wikitext-103, ptb") as error:
        load_text("wikitext-3")
    assert "\n" not in str(error.value)


def test_a_dataset_with_its_configuration(monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return {"train": {"text": LINES}, "test": {"text": ["the end"]}}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    text = load_text("someone/texts:english")
    assert asked == [("someone/texts", "english")]
    assert text.test == "the end"
    assert text.train + text.validation == "\n".join(LINES)


def test_sentences_of_a_text():
    text = (
        " = A heading = \n\n It costs 1 @,@ 000 pounds in all . Is it worth it ? No . \n It is a well @-@ known one ."
    )
    assert sentences(text) == ["It costs 1,000 pounds in all .", "Is it worth it ?", "It is a well-known one ."]

"""What a file of text says, how it is cut, and that a passage is found where it stands."""

import re

import numpy as np
import pytest

from abridged.index.passages import ENOUGH, MOST, OVERLAP, TextError, passages, read_document, windows


def count(texts):
    return [len(text.split()) for text in texts]


def cut(path, text, limit=24):
    """The passages of a file of that text, each with its first and last line."""
    path.write_text(text, encoding="utf-8")
    document = read_document(path)
    return [(document.text[a:b], *document.place(a, b)) for a, b in passages(document, count, limit)]


def test_short_paragraphs_are_put_together_until_there_is_enough(tmp_path):
    few = "\n\n".join(f"word {n}." for n in range(100))
    found = cut(tmp_path / "a.txt", few, MOST)
    assert [text.count("word") for text, _, _ in found] == [ENOUGH // 2] * 3 + [100 - ENOUGH // 2 * 3]
    assert found[1][1:] == (ENOUGH + 1, 2 * ENOUGH - 1)


def test_a_heading_begins_a_passage_in_markdown_alone(tmp_path):
    text = "Before.\n\n# Lamp\n\nIt hangs.\n## Reset\nHold it.\n"
    assert cut(tmp_path / "a.md", text) == [
        ("Before.", 1, 1), ("# Lamp\n\nIt hangs.", 3, 5), ("## Reset\nHold it.", 6, 7),
    ]  # fmt: skip
    assert len(cut(tmp_path / "a.txt", text)) == 1


def test_a_long_paragraph_is_cut_between_sentences_with_overlap(tmp_path):
    sentences = [f"Sentence number {n} has\nexactly seven words." for n in range(9)]
    found = cut(tmp_path / "a.txt", "Short.\n\n" + " ".join(sentences) + "\n\nEnd.")
    texts = [text for text, _, _ in found]
    assert texts[0] == "Short."
    assert texts[-1] == "End."
    assert texts[1] == " ".join(sentences[:3])
    assert all(len(text.split()) <= 24 for text in texts)
    assert all(text.endswith(".") for text in texts)
    assert found[1][1:] == (3, 6)
    fours = [f"One two {n} four." for n in range(20)]  # of which one more is within a quarter of 24
    texts = [text for text, _, _ in cut(tmp_path / "a.txt", " ".join(fours))]
    assert texts[0].endswith(fours[5])
    assert texts[1].startswith(fours[5])
    assert {sentence for text in texts for sentence in fours if sentence in text} == set(fours)


def test_a_long_sentence_is_cut_between_words_and_a_long_word_anywhere(tmp_path):
    words = [f"w{n}" for n in range(100)]
    texts = [text.split() for text, _, _ in cut(tmp_path / "a.txt", " ".join(words))]
    assert sorted({word for text in texts for word in text}) == sorted(words)
    assert max(map(len, texts)) <= 24
    assert [a[-6:] == b[:6] for a, b in zip(texts, texts[1:], strict=False)] == [True] * (len(texts) - 1)

    def by_character(texts):
        return [4 * len(text) for text in texts]

    (tmp_path / "b.txt").write_text("x" * 1000)
    document = read_document(tmp_path / "b.txt")
    found = passages(document, by_character, 64)
    assert set().union(*(range(a, b) for a, b in found)) == set(range(1000))
    assert max(by_character(document.text[a:b] for a, b in found)) <= 64


def test_windows_end_and_stay_within_the_limit_whatever_the_units():
    draw = np.random.default_rng(0)
    for _ in range(200):
        units = [((n, n + 1), int(draw.integers(0, 12))) for n in range(draw.integers(1, 30))]
        limit = int(draw.integers(1, 30))
        found = windows(units, limit)
        assert {n for a, b in found for n in range(a, b)} == set(range(len(units)))
        for (a, b), after in zip(found, [*found[1:], None], strict=True):
            assert b - a == 1 or sum(tokens for _, tokens in units[a:b]) <= limit
            assert after is None or (a < after[0] <= b < after[1])
            if after is not None:
                assert sum(tokens for _, tokens in units[after[0] : b]) <= OVERLAP * limit


def test_rows_are_passages_of_their_texts_with_their_lines(tmp_path):
    table = 'title,year,body\nLamp,2024-05-01,"It hangs.\n\nIt shines."\n,17,\nSea,3.5,It is grey.\n'
    assert cut(tmp_path / "a.csv", table) == [("Lamp\nIt hangs.\n\nIt shines.", 2, 4), ("Sea\nIt is grey.", 6, 6)]
    lines = '{"n": 1, "text": "one"}\n\n{"text": "two words", "more": ["x"], "none": null}\n{"n": 2}\n'
    assert cut(tmp_path / "a.jsonl", lines) == [("one", 1, 1), ("two words", 3, 3)]
    assert cut(tmp_path / "a.tsv", 'a\tb\n"x\ty\n') == [('"x\ny', 2, 2)]


def test_every_word_of_a_text_is_in_a_passage_and_lines_are_those_of_an_editor(tmp_path):
    draw = np.random.default_rng(1)
    for number in range(60):
        pieces = draw.choice(
            ["alpha", "beta.", "é!", "\n", "\n\n", " ", "\t", "# x", "\n \n", "𝄞"], draw.integers(1, 80)
        )
        path = tmp_path / f"{number}.{['txt', 'md'][number % 2]}"
        path.write_text(text := "".join(pieces) + " word", encoding="utf-8", newline="")
        document = read_document(path)
        spans = passages(document, count, 5)
        covered = set().union(*(range(a, b) for a, b in spans))
        assert all(text[i].isspace() or i in covered for i in range(len(text)))
        for a, b in spans:
            first, last = document.place(a, b)
            assert (first, last) == (1 + text.count("\n", 0, a), 1 + text.count("\n", 0, b - 1))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", "cannot be read: not UTF-8 text"),
        ("a.txt", b" \n\n--\n", "there are no words in it"),
        ("a.csv", b"a,b\n1,2\n", "there are no words in it"),
        ("a.csv", b"a,b\n1\n", "cannot be read as rows: line 2 has 1 cells"),
        ("a.jsonl", b'{"a": "x"}\n[1]\n', "cannot be read as rows: line 2 is not an object"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "half a character"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=re.escape(said)) as raised:
        read_document(tmp_path / name)
    assert str(tmp_path) not in str(raised.value)


def test_a_file_that_fills_the_memory_is_not_begun(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some words")
    monkeypatch.setattr("abridged.index.passages._LARGEST", 5)
    with pytest.raises(TextError, match="cut it into parts"):
        read_document(tmp_path / "a.txt")

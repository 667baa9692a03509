"""Data files of every format, whole and damaged, against a strict reading of them (tests/strict.py)."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

import strict
from abridged.core.errors import AbridgedError
from abridged.core.text import printable
from abridged.data.rows import rows
from abridged.data.text_source import Cursor, TextSource
from abridged.evaluation.sentences import Encoded
from abridged.index.shards import Shards
from fuzzing import fuzz

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]

#: What readers stumble over, as text.
WORDS = [
    *(
        "a",
        "0",
        "1",
        "0.0",
        "1.5",
        "-1",
        "1e3",
        "1_0",
        "nan",
        "NaN",
        "inf",
        "-",
        "--",
        "True",
        "text",
        "label",
        "",
        " ",
    ),
    *("\u2028", "\x0c", "\x85", "\x1c", "\ufeff", "é", "\U0001f600", "\x1b[2J", "\u202e", "１", '"', "'", ",", "\\"),
    *('""', "\\ud800", "\\u0000", "null", "[", "{", "x" * 300),
]
ENDS = ["\n", "\r\n", "\r", "\t", "\n\n"]
BYTES = [word.encode() for word in (*WORDS, *ENDS)] + [b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80"]
CELLS = st.lists(st.sampled_from(WORDS), min_size=0, max_size=3).map("".join)
BROKEN_CELLS = st.lists(st.sampled_from([*WORDS, *ENDS]), max_size=4).map("".join)
LABELS = st.sampled_from(["0", "1", "0.0", "good", "bad", "nan", "", "-", "+", " 1", "inf"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(width=32), BROKEN_CELLS,
    st.sampled_from([0.0, 1.0, 2.0**60, [], ["a"], {"a": 1}]),
)  # fmt: skip


@st.composite
def damaged(draw, whole):
    """Some bytes of a file replaced, added or left out; more often none."""
    content = draw(whole)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(content)))
        piece = draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=2)))
        content = content[:at] + piece + content[at + draw(st.integers(0, 3)) :]
    return content


@st.composite
def tables(draw, separator, quote):
    """A header, and rows of about as many cells as it has."""
    width = draw(st.integers(1, 4))
    names = draw(
        st.lists(st.one_of(st.sampled_from(["text", "label", "second", "id"]), CELLS), min_size=width, max_size=width)
    )
    lines = [names]
    if draw(st.booleans()):  # whole rows of labelled texts, so many that they may be scores
        label = draw(st.sampled_from([LABELS, st.integers(0, 60).map(str), st.floats(0, 9).map(repr)]))
        lines += [[*(f"t{i}" for i in range(width - 1)), draw(label)] for _ in range(draw(st.integers(1, 40)))]
    some = st.lists(BROKEN_CELLS if quote else CELLS, min_size=width, max_size=width)
    lines += draw(st.lists(st.one_of(some, some, some, st.lists(CELLS, max_size=5)), max_size=6))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))

    def written(cell):
        if quote and (draw(st.integers(0, 9)) == 0 or any(sign in cell for sign in ',"\r\n')):
            return '"' + cell.replace('"', '""') + '"'
        return cell

    mark = draw(st.sampled_from(["", "\ufeff"]))
    return (
        mark + end.join(separator.join(map(written, line)) for line in lines) + draw(st.sampled_from(["", end]))
    ).encode()


OBJECTS = st.one_of(
    st.fixed_dictionaries({"text": BROKEN_CELLS, "label": VALUES}),
    st.fixed_dictionaries({"text": VALUES, "label": st.integers(0, 40)}),
    st.dictionaries(st.sampled_from(["text", "label", "", "a", "é"]), VALUES, max_size=4),
)


@st.composite
def objects(draw, lines):
    some = draw(st.lists(OBJECTS, max_size=30))
    ascii_only = draw(st.booleans())
    if lines:
        text = "".join(json.dumps(one, ensure_ascii=ascii_only) + draw(st.sampled_from(ENDS[:3])) for one in some)
    else:
        text = json.dumps(some, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 1])))
    more = draw(
        st.sampled_from(["", "", "", "", "[" * 100_000, '{"a": ' + "9" * 5_000 + "}", '{"a": 1, "a": 2}', "[1]"])
    )
    return (draw(st.sampled_from(["", "\ufeff"])) + text + more).encode()


@st.composite
def parquet(draw):
    """A file of typed columns, and its rows."""
    kinds = st.sampled_from(
        [st.booleans(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 1), st.floats(), BROKEN_CELLS]
    )
    count, columns = draw(st.integers(0, 30)), {}
    for name in draw(st.lists(st.sampled_from(["text", "label", "", "a"]), min_size=1, max_size=4, unique=True)):
        values = st.one_of(draw(kinds), st.none())
        columns[name] = draw(st.lists(values, min_size=count, max_size=count))
    return columns


@st.composite
def columns(draw):
    """Words and tags, most lines with as many cells as each other."""
    apart, width = draw(st.sampled_from([" ", "\t"])), draw(st.integers(1, 4))
    cells = st.one_of(st.sampled_from(["a", "O", "B-A", "#", "-DOCSTART-"]), CELLS)
    whole = st.lists(cells, min_size=width, max_size=width).map(apart.join)
    lines = st.one_of(whole, whole, whole, st.just(""), st.sampled_from(["# a comment", "#", "-DOCSTART- -X- O", " "]))
    return draw(st.sampled_from(["\n", "\r\n"])).join(draw(st.lists(lines, max_size=20))).encode()


FORMATS = {
    ".conll": damaged(columns()),
    ".txt": damaged(st.lists(st.sampled_from([*WORDS, *ENDS]), max_size=30).map(lambda words: "".join(words).encode())),
    ".csv": damaged(tables(",", True)),
    ".tsv": damaged(tables("\t", False)),
    ".jsonl": damaged(objects(True)),
    ".json": damaged(objects(False)),
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_is_read_as_a_strict_reader_reads_it(suffix, tmp_path):
    def check(content):
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(content)
        strict.check(path)

    assert fuzz(check, FORMATS[suffix], lambda content: (f"data/fuzzed{suffix}", content))


def test_parquet_gives_the_rows_that_were_written(tmp_path):
    def written(columns):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "fuzzed.parquet")
        return tmp_path / "fuzzed.parquet"

    def check(columns):
        path = written(columns)
        count = len(next(iter(columns.values())))
        expected = [{name: values[i] for name, values in columns.items()} for i in range(count)]
        assert repr([dict(row) for row in rows(path)]) == repr(expected)
        strict.check(path)

    assert fuzz(check, parquet(), lambda columns: ("data/fuzzed.parquet", written(columns).read_bytes()))


def test_damaged_parquet_ends_in_one_sentence(tmp_path):
    table = pyarrow.table({"text": [f"text {i}" for i in range(50)], "label": [i % 2 for i in range(50)]})
    pyarrow.parquet.write_table(table, tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()

    def check(content):
        (tmp_path / "fuzzed.parquet").write_bytes(content)
        strict.check(tmp_path / "fuzzed.parquet")

    assert fuzz(check, damaged(st.just(whole)), lambda content: ("data/fuzzed.parquet", content))


class Lengths:
    """An encoder whose vectors say how long a text is."""

    def encode(self, texts, prompt=None, batch_size=32):
        assert all(text == text.strip() != "" for text in texts)
        return Encoded(np.array([[len(text) % 1000, 1] for text in texts], np.float32), 0)


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".conll"])
def test_shards_of_vectors_have_a_row_for_each_text(suffix, tmp_path):
    """Of any file: one sentence, or the rows that are read of it, each with the vector of its own text."""
    content = damaged(st.lists(BROKEN_CELLS).map(lambda lines: "\n".join(lines).encode()))

    def check(content):
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(content)
        try:
            source = TextSource.open(path)
            shards = Shards("model", source, tmp_path, rows=3)
            cursor = Cursor(source)
            for number in range(len(shards)):
                shards.write(Lengths(), cursor, 2, number)
        except AbridgedError as fault:
            sentences = printable(str(fault)).splitlines()  # as it is shown
            assert len(sentences) == 1
            return
        if suffix == ".txt":
            text = content.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
            expected = [line.strip() for line in text.removesuffix("\n").split("\n")]
        else:
            expected = [row.text(source.parts[0].column) for row in rows(path)]
        written = [pyarrow.parquet.read_table(shards.path(number)) for number in range(len(shards))]
        found = pyarrow.concat_tables(written).to_pydict()
        assert found["row"] == list(range(len(expected)))
        assert found["vector"] == [[len(text) % 1000, 1] if text else None for text in expected]

    given = FORMATS.get(suffix, content)
    assert fuzz(check, given, lambda content: (f"data/fuzzed{suffix}", content))

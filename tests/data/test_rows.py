"""Files of rows, read strictly: what is no table is refused in the line where it stops being one."""

import json

import pytest

from abridged.core.errors import AbridgedError
from abridged.data.rows import rows


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(rows(path))


def test_quotation_marks_quote_in_csv_and_nothing_in_tsv(tmp_path):
    assert read(tmp_path / "a.tsv", 'a\tb\n"x\t1\ny"\t2\n') == [{"a": '"x', "b": "1"}, {"a": 'y"', "b": "2"}]
    assert read(tmp_path / "a.csv", 'a,b\n"x, ""y""\nz",1\nit is "so",2\n') == [
        {"a": 'x, "y"\nz', "b": "1"},
        {"a": 'it is "so"', "b": "2"},
    ]


def test_rows_know_their_lines(tmp_path):
    found = read(tmp_path / "a.csv", 'a,b\r\n"x\r\ny",1\r\n\r\nz,2\r\n')
    assert [(row.number, row.lines) for row in found] == [(2, 2), (5, 1)]
    assert found[1].place == f"line 5 of {tmp_path}/a.csv"
    assert [row.place[:5] for row in read(tmp_path / "a.json", '[{"a": 1}, {"a": 2}]')] == ["row 1", "row 2"]


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path):
    assert len(read(tmp_path / "a.csv", f"a,b\n{'x' * 200_000},1\n")[0]["a"]) == 200_000


@pytest.mark.parametrize("name", ["a.CSV", "a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_a_byte_order_mark_is_no_part_of_a_name(name, tmp_path):
    content = {"csv": "t,l\nx,1\n", "tsv": "t\tl\nx\t1\n"}.get(name.lower()[2:], '{"t": "x", "l": "1"}\n')
    assert read(tmp_path / name, "\ufeff" + content) == [{"t": "x", "l": "1"}]


def test_json_may_be_a_list_or_lines(tmp_path):
    some = [{"a": 0}, {"a": None}]
    assert read(tmp_path / "a.json", json.dumps(some, indent=2)) == some
    assert read(tmp_path / "b.json", "".join(json.dumps(row) + "\n" for row in some)) == some


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'a,b\n1,2\n"x,3\n4,5\n', "the row that begins in line 3: unexpected end of data"),
        ("a.csv", 'a,b\n1,2\n"x,3\n"y" z,5\n', "the row that begins in line 3: ',' expected after '\"'"),
        ("a.csv", "a,b\n1,2,3\n", "line 2 has 3 cells, and the first line names 2 columns"),
        ("a.tsv", "a\tb\n1\t2\n\n3\n", "line 4 has 1 cells, and the first line names 2 columns"),
        ("a.tsv", "a\ta\n1\t2\n", "two columns are called 'a'"),
        ("a.csv", "a, a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", b"a,b\n\xff,1\n", "not UTF-8 text"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: it has 'a' twice"),
        ("a.jsonl", "[" * 100_000 + "\n", "line 1: it is nested too deeply"),
        ("a.jsonl", f'{{"a": {"9" * 5000}}}\n', "line 1: it has a number of thousands of digits"),
        ("a.jsonl", '{"a": "\\ud83d"}\n', "line 1: it holds half a character"),
        ("a.json", '[{"a": 1}, 2]', "row 2 is not an object"),
        ("a.txt", "a", "its name ends in none of .jsonl, .json, .csv, .tsv, .parquet"),
        ("a.parquet", b"PAR1" * 5, "cannot read rows from"),
    ],
)
def test_what_is_no_table(name, content, message, tmp_path):
    with pytest.raises(AbridgedError) as error:
        read(tmp_path / name, content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_is_no_text(tmp_path):
    row = read(tmp_path / "a.jsonl", '{"a": ["x"], "b": 0, "c": false, "d": null, "e": NaN, "f": 2.0}\n')[0]
    assert [row.text(column) for column in "bcdefg"] == ["0", "False", "", "", "2", ""]
    with pytest.raises(AbridgedError, match="line 1 of .* has a list, which is no text, in its column 'a'"):
        row.text("a")


def test_columns_of_one_name_in_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(AbridgedError, match="two columns are called 'a'"):
        list(rows(tmp_path / "a.parquet"))

"""Queries and the passages that answer them, as they stand in files of rows."""

import pytest

from abridged.core.errors import AbridgedError
from abridged.data.judged import read_judged

ROWS = "query\tpassage\trelevance\nq1\ta\t2\nq1\tb\t0\nq2\tb\t1\n\tc\t0\nq3\t\t1\nq2\ta\t1\n"


def test_what_is_judged_and_what_is_searched(tmp_path):
    (tmp_path / "a.tsv").write_text(ROWS)
    found = read_judged(tmp_path / "a.tsv")
    assert (found.queries, found.passages) == (["q1", "q2"], ["a", "b", "c"])
    assert found.relevant == [{0: 2.0}, {1: 1.0, 0: 1.0}]
    assert found.describe() == "a.tsv: 2 queries, 3 answers among 3 passages; 1 rows without a passage left out"
    assert read_judged(tmp_path / "a.tsv", limit=1).queries == ["q1"]
    (tmp_path / "b.tsv").write_text("ask\tanswer it\tscore\nq\ta\tx\n")
    assert read_judged(tmp_path / "b.tsv").relevant == [{0: 1.0}]  # the first two columns, where they are not known


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ("query\tpassage\trelevance\nq\ta\tmuch\n", None, "has the relevance 'much', which is no number"),
        ("query\tpassage\trelevance\nq\ta\tnan\n", None, "has the relevance 'nan'"),
        ("query\tpassage\trelevance\nq\ta\t0\n", None, "no query with a passage that answers it"),
        ("query\nq\n", None, "a query and a passage are wanted"),
        ("query\tpassage\nq\ta\n", ("query", "body"), "has no column 'body'"),
    ],
)
def test_what_is_not_judged_is_one_sentence(tmp_path, rows, columns, said):
    (tmp_path / "a.tsv").write_text(rows)
    with pytest.raises(AbridgedError, match=said):
        read_judged(tmp_path / "a.tsv", columns)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(AbridgedError, match="no such file"):
        read_judged(tmp_path / "none.tsv")

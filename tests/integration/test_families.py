"""The command behind docs/models.md, on a few of its rows; and the page, against the results beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import benchmark
from tiny import REFUSED, TINY

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_rows_are_measured_and_refused(tmp_path):
    command = [sys.executable, "benchmarks/families.py", "--only", "qwen3", "falcon", "mixtral", "--results", tmp_path]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    rows = {row["name"]: row for row in benchmark("results").read("families", tmp_path)}
    for column in ("2 bits", "1 bit", "factored", "pruned"):
        for name in ("qwen3", "falcon"):
            found = rows[name]["cells"][column]
            assert found["reloaded"] < 1e-4
            assert found["writes"]
    assert rows["qwen3"]["cells"]["dense"] < 1e-4
    assert "leave blocks out" in rows["falcon"]["note"]
    assert "experts" in rows["mixtral"]["refused"]


def test_the_page_has_a_row_for_every_model_and_none_fails():
    rows = {row["name"]: row for row in benchmark("results").read("families")}
    page = (ROOT / "docs/models.md").read_text()
    assert set(rows) == {*TINY, *REFUSED}
    for name in rows:
        assert f"| {name} |" in page
    assert "NO" not in page

"""Data files that were once read wrongly, and those that the fuzzer found."""

import pytest

import strict
from fuzzing import REGRESSIONS, limited

FILES = sorted(path for path in (REGRESSIONS / "data").iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_read_as_a_strict_reader_reads_it(path):
    with limited():
        strict.check(path)

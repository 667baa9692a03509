"""Texts that were cut wrongly, found by the fuzzer or otherwise."""

import pytest

import damaged
from fuzzing import REGRESSIONS, limited

FILES = sorted((REGRESSIONS / "texts").glob("*.*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_read_or_refused_in_a_sentence(path):
    with limited():
        damaged.check(path)

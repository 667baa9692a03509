"""Videos and indexes that the fuzzer found to be read wrongly."""

import pytest

pytest.importorskip("av")
import damaged
from fuzzing import REGRESSIONS, limited

FILES = sorted((REGRESSIONS / "videos").glob("*.*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_read_or_refused_in_a_sentence(path):
    with limited():
        damaged.check(path)

import math

import pytest

from abridged.report.text import (
    duration,
    megabytes,
    number,
    readable,
    signed_percent,
    significant,
    visible,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (14.484, "14.48"), (1234.5, "1,234.50"), (18344.2, "18,344"), (3.21e7, "3.2 × 10⁷"), (math.inf, "∞"),
        (math.nan, "–"), (None, "–"), (-2.5, "−2.50"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_percentages_carry_their_sign():
    assert signed_percent(0.195) == "+19.5\u202f%"
    assert signed_percent(-0.01) == "−1.0\u202f%"


def test_megabytes_are_of_two_to_the_twentieth():
    assert megabytes(474.7 * 2**20) == "474.7"
    assert megabytes(2**19) == "0.50"


@pytest.mark.parametrize(("value", "text"), [(0.021345, "0.0213"), (12.34, "12.3"), (0, "0"), (1e-9, "1.00e−09")])
def test_significant(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (372, "6 min 12 s"), (7500, "2 h 05 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_labels_show_blanks_and_hide_what_cannot_be_drawn():
    assert visible(" river") == "river"
    assert visible(" ") == "␣"
    assert visible("\n") == "↵"
    assert visible("a\x00\u202eb\ud800") == "a��b�"
    assert visible("x" * 40, 10) == "x" * 9 + "…"


def test_running_text_keeps_its_lines():
    assert readable("a\n\tb\x1b[31m") == "a\n\tb�[31m"

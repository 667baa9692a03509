"""People's text: its lines, its JSON, and what of it a terminal may see."""

import pytest

from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of, parse_json, printable, read_text, refuse_half_characters


def test_lines_end_in_line_ends_alone():
    assert lines_of("a\u2028b\x0c\n\nc\x85\n") == ["a\u2028b\x0c", "", "c\x85"]
    assert lines_of("a") == ["a"]
    assert lines_of("") == []


def test_a_file_without_its_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "a") == "a\nb"
    with pytest.raises(AbridgedError, match="cannot read .*nowhere: No such file"):
        read_text(tmp_path / "nowhere")


def test_json_keeps_whole_pairs_of_surrogates_and_refuses_halves():
    assert parse_json(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"
    assert parse_json(r'"\\ud83d"') == r"\ud83d"
    with pytest.raises(ValueError, match="half a character"):
        parse_json(r'{"a": "\uDE00"}')
    with pytest.raises(AbridgedError, match="half a character"):
        refuse_half_characters("fine", "b\udcff")
    refuse_half_characters("fine", "naïve \N{GRINNING FACE}")


def test_what_a_terminal_would_obey_is_spelled_out():
    assert printable("a\x1b[2J\x9b\u202e\r\udcff") == r"a\x1b[2J\x9b\u202e\r\udcff"
    assert printable("naïve\tтекст\n\N{GRINNING FACE}") == "naïve\tтекст\n\N{GRINNING FACE}"

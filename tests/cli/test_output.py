"""What the verbs print: labels and names are others' words, and a terminal obeys none of them."""

import json

from abridged.cli.output import print_json, print_pairs, print_table


def test_what_a_terminal_would_obey_is_spelled_out(capsys):
    print_pairs({"a\x1b[2J": "b\u202e"})
    print_table(["label"], [["\x9bgood"]])
    assert capsys.readouterr().out.split() == [r"a\x1b[2J", r"b\u202e", "label", "-" * 8, r"\x9bgood"]


def test_json_is_json_whatever_is_in_it(capsys):
    print_json({"half\ud800": "é\x1b"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"half\ud800": "é\x1b"}
    said.encode()

"""Notes of every kind, and an index of them, with bytes changed, lost and added."""

import pytest
from hypothesis import strategies as st

import bags
import damaged
from abridged.index.build import build
from bags import Bags
from fuzzing import fuzz

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]
#: What says where a passage begins or ends, or is no text.
SIGNS = ["\n", "\n\n", "\r", "\r\n", "\n# ", ". ", "。", '"', '""', ",", "\t", "{", "}", ":",
         "\\ud800", "\0", "\x1c", "\u2028",
         "\u200b", "𝄞", "x" * 99, "one two three " * 9]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a whole file of each kind, by its ending."""
    folder = tmp_path_factory.mktemp("whole")
    bags.write(folder / "notes")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    build(folder / "model", folder / "notes", folder / "f.sqlite", embedder=Bags)
    return {path.suffix: path.read_bytes() for path in (*(folder / "notes").rglob("*.*"), folder / "f.sqlite")}


@st.composite
def mutated(draw, content):
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        gone = draw(st.sampled_from([0, 0, 1, 4, 100]))
        piece = draw(st.one_of(st.binary(max_size=4), st.sampled_from([sign.encode() for sign in SIGNS])))
        content = content[:at] + piece + content[at + gone :]
    return content


@pytest.mark.parametrize("ending", [".md", ".txt", ".jsonl", ".csv", ".sqlite"])
def test_it_is_read_or_refused_in_a_sentence(ending, whole, tmp_path):
    def check(content):
        path = tmp_path / f"fuzzed{ending}"
        path.write_bytes(content)
        damaged.check(path)

    assert fuzz(check, mutated(whole[ending]), lambda content: (f"texts/fuzzed{ending}", content))

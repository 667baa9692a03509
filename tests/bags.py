"""A model of bags of words, which is quick, for an index of texts; and a folder of notes."""

import re
import zlib

import numpy as np

from abridged.evaluation.vectors import unit

NOTES = {
    "reset.md": "# Lamp\n\nIt hangs over the table.\n\n## Reset\n\nTo reset the lamp, hold its button.\n\n"
    "Then wait for a green light.\n",
    "sea.txt": "The sea is grey today.\n\nGulls cry over the harbour,\nand boats come home.\n",
    "sub/recipes.jsonl": '{"id": 7, "name": "Soup", "text": "Boil carrots and leeks."}\n\n'
    '{"id": 8, "name": "Bread", "text": "Knead flour and water."}\n',
    "sub/deep/people.csv": 'name,born,job\nAda,1815,"counts\nnumbers"\nGrace,1906,writes compilers\n',
}


class Bags:
    """A vector counts the words of a text, each at a place of its own; a word is a token."""

    width, limit = 64, 24

    def __init__(self, name=None):
        self.read = 0

    def count(self, texts):
        return [len(text.split()) for text in texts]

    def embed_passages(self, texts):
        self.read += len(texts)
        return np.stack([self.embed_text(text) for text in texts])

    def embed_text(self, text):
        found = np.zeros(self.width, np.float32)
        for word in re.findall(r"\w+", text.lower()):
            found[zlib.crc32(word.encode()) % self.width] += 1
        return unit(found)


def write(folder, notes=NOTES):
    """Texts by name, as files in a folder."""
    for name, text in notes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder

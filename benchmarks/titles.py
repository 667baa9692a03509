"""Titles from bodies: paragraphs of WikiText-2's articles, and the title of the article that each is from.

Leads are left out, since they begin with the title. What is left names the title anywhere, somewhere, or in parts; only
paragraphs that have all of its words are kept, so that it can be found. Every tenth title of the training part is kept
for the test part, which has few.

There are some 500 titles to learn from, which a model would soon know by heart. So each pair is there ten times more
with other names: those of the title are replaced in both, by names from anywhere in the training part.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PARTS = ("train", "valid", "test")
SWAPS = 10  #: further copies of a pair, with other names
LEAST_WORDS = 40  #: of a paragraph
_SMALL = frozenset(("the", "of", "a", "in", "and"))
_NAME = re.compile(r"[A-Z][a-z]{2,}")


def write_titles(data: Path, folder: Path, seed: int = 0) -> Path:
    """Write {train,valid,test}.jsonl of `body` and `title` to `folder`; `data` has wikitext-2/wiki.*.tokens.

    `seed` is of the other names: a model that has seen one set of them several times goes on better with another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = {part: list(_paragraphs(data / "wikitext-2" / f"wiki.{part}.tokens")) for part in PARTS}
    held = set(sorted({title for title, _ in pairs["train"]})[::10])
    pairs["test"] += [pair for pair in pairs["train"] if pair[0] in held]
    pairs["train"] = [pair for pair in pairs["train"] if pair[0] not in held]
    names = _names(body for _, body in pairs["train"])
    whole = {part: [pair for pair in some if _words(pair[0]) <= _words(pair[1])] for part, some in pairs.items()}
    whole["train"] = _with_other_names(whole["train"], names, seed)
    for part, some in whole.items():
        lines = (json.dumps({"body": body, "title": title}) + "\n" for title, body in some)
        (folder / f"{part}.jsonl").write_text("".join(lines))
    return folder


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
    """(title, paragraph) of what is not a lead and shares a word with the title."""
    title, lead = "", True
    for line in map(str.strip, path.read_text().splitlines()):
        heading = re.fullmatch(r"= ([^=].*?) =", line)
        if line.startswith("= ="):
            lead = False
        elif heading:
            title, lead = heading[1], True
        elif lead or "<unk>" in title or len(line.split()) < LEAST_WORDS:
            continue
        elif _words(title) & _words(line):
            yield title, line


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - _SMALL


def _names(bodies: Iterator[str]) -> list[str]:
    """Words with a capital that are more often names than words that begin a sentence."""
    words = [word for body in bodies for word in body.split()]
    capital = Counter(word for word in words if _NAME.fullmatch(word))
    small = Counter(word for word in words if word.islower())
    return [word for word, count in capital.items() if small[word.lower()] < count]


def _with_other_names(pairs: list[tuple[str, str]], names: list[str], seed: int) -> list[tuple[str, str]]:
    draw, made = random.Random(seed), []
    for title, body in pairs:
        made.append((title, body))
        own = [word for word in title.split() if _NAME.fullmatch(word) and word != "The"]
        for _ in range(SWAPS if own else 0):
            other = {word: draw.choice(names) for word in own}
            made.append((_renamed(title, other), _renamed(body, other)))
    draw.shuffle(made)
    return made


def _renamed(text: str, other: dict[str, str]) -> str:
    return " ".join(other.get(word, word) for word in text.split())

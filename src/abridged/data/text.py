"""Finds text by built-in name, by path or by `datasets` name, in its three splits."""

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from abridged.errors import AbridgedError

#: Built-in names that need a hub: (dataset, configuration, text column).
_HUB = {
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-v1", "text"),
    "ptb": ("ptb-text-only/ptb_text_only", None, "sentence"),
}
BUILT_IN = ("wikitext-2", *_HUB)
SPLITS = {"train": {"train"}, "validation": {"validation", "valid", "dev"}, "test": {"test"}}
_SUFFIXES = (".txt", ".tokens", ".txt.xz", ".jsonl", ".parquet")
#: Held out of a text that has no validation split of its own.
VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class TextData:
    """Three parts of one text. What came without a validation or test part has its last twentieth held out for both."""

    name: str
    train: str
    validation: str
    test: str
    split: bool = True  #: whether it came in parts

    @property
    def to_evaluate(self) -> str:
        """What to evaluate a finished model on: the test part, or all of a text that has no parts."""
        return self.test if self.split else self.train + self.validation


def load_text(data: str | Path) -> TextData:
    """Read text by name or path.

    Args:
        data: `wikitext-2` (bundled), `wikitext-103` or `ptb` (from a hub), a .txt, .txt.xz, .tokens, .jsonl or
            .parquet file, a folder of such files (train, validation and test by that word in their path), or the name
            of a `datasets` dataset, with its configuration after a colon.

    Raises:
        AbridgedError: nothing is found under that name, or what is found holds no text.
    """
    name = str(data)
    path = Path(data).expanduser()
    if name == "wikitext-2":
        loaded = _bundled_wikitext2()
    elif path.is_file():
        loaded = _without_splits(name, _read(path))
    elif path.is_dir():
        loaded = _folder(name, path)
    elif name not in _HUB and (path.suffix in _SUFFIXES or name.startswith((".", "/", "~"))):
        raise AbridgedError(f"no such file or folder: {name}")
    else:
        loaded = _from_datasets(name)
    if not loaded.to_evaluate.strip():
        raise AbridgedError(f"the text '{name}' is empty")
    return loaded


def _bundled_wikitext2() -> TextData:
    folder = files("abridged") / "assets" / "wikitext-2"

    def read(split: str) -> str:
        return lzma.decompress((folder / f"{split}.txt.xz").read_bytes()).decode()

    return TextData("wikitext-2", read("train"), read("validation"), read("test"))


def _without_splits(name: str, text: str) -> TextData:
    """Hold out the last twentieth, cut at a line end."""
    cut = text.rfind("\n", 0, int(len(text) * (1 - VALIDATION_SHARE))) + 1
    cut = cut or int(len(text) * (1 - VALIDATION_SHARE))
    return TextData(name, text[:cut], text[cut:], text[cut:], split=False)


def _with_splits(name: str, texts: dict[str, str]) -> TextData:
    alone = _without_splits(name, texts["train"])
    if not texts["validation"] and not texts["test"]:
        return alone
    train = texts["train"] if texts["validation"] else alone.train
    validation = texts["validation"] or alone.validation
    return TextData(name, train, validation, texts["test"] or validation)


def _folder(name: str, folder: Path) -> TextData:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.endswith(_SUFFIXES))
    if not paths:
        raise AbridgedError(f"the folder {name} holds no {', '.join(_SUFFIXES)} file")

    def of(split: str) -> list[Path]:
        return [p for p in paths if words_of_path(p.relative_to(folder)) & SPLITS[split]]

    if not of("train"):
        return _without_splits(name, "\n".join(map(_read, paths)))
    return _with_splits(name, {split: "\n".join(map(_read, of(split))) for split in SPLITS})


def words_of_path(path: Path) -> set[str]:
    """The words in a path: a split's name among them says what a file is for."""
    return set(re.split("[^a-z]+", str(path).lower()))


def _read(path: Path) -> str:
    try:
        if path.name.endswith(".xz"):
            return lzma.decompress(path.read_bytes()).decode()
        if path.suffix == ".jsonl":
            return "\n".join(_jsonl(path))
        if path.suffix == ".parquet":
            from datasets import Dataset

            return "\n".join(Dataset.from_parquet(str(path))["text"])
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, lzma.LZMAError, OSError, KeyError, ValueError) as error:
        raise AbridgedError(f"cannot read text from {path}: {error}") from error


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f'line {number} is not an object with a "text" field')
            yield row["text"]


def _from_datasets(name: str) -> TextData:
    dataset_name, _, configuration = name.partition(":")
    repository, config, column = _HUB.get(name, (dataset_name, configuration or None, "text"))
    try:
        from datasets import load_dataset

        splits = load_dataset(repository, config)
        texts = {
            split: "\n".join(splits[split][column]) if split in splits else ""
            for split in ("train", "validation", "test")
        }
    except Exception as error:  # datasets raises a dozen kinds; to a person they all mean: not found or not reachable
        raise AbridgedError(
            f"no text called '{name}': it is no file or folder, no built-in name ({', '.join(BUILT_IN)}), and datasets "
            f"could not load it ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    return _with_splits(name, texts)


def sentences(text: str) -> list[str]:
    """A text's sentences of four words and more, without headings, and without the signs that WikiText escapes hyphens
    and separators with (`1 @,@ 000`)."""
    lines = [line.strip() for line in re.sub(r" @(\W)@ ", r"\1", text).splitlines() if not line.strip().startswith("=")]
    found = (sentence.strip() for line in lines for sentence in re.split(r"(?<=[.!?])\s+", line))
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def count_words(text: str) -> int:
    """Whitespace-separated tokens plus one per line end, the usual count for WikiText (245,569 in its test split)."""
    return len(text.split()) + text.count("\n")

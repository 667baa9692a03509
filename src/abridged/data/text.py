"""Finds text by built-in name, by path or by `datasets` name, in its three splits."""

import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of, read_text
from abridged.data.dataset import PARTS, Dataset, hub_splits
from abridged.data.rows import SUFFIXES, Row, account_of_files, by_split, is_rows, rows

if TYPE_CHECKING:
    from abridged.data.sentences import SentenceData

#: Built-in names that need a hub: (dataset, configuration, text column).
_HUB = {
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-v1", "text"),
    "ptb": ("ptb-text-only/ptb_text_only", None, "sentence"),
}
BUILT_IN = ("wikitext-2", *_HUB)
TEXT_SUFFIXES = (".txt", ".tokens", ".txt.xz", *SUFFIXES)
#: The name of the task, where it must be said that a model is to learn which tokens of a text were masked.
MLM = "mlm"
#: Held out of a text that has no validation split of its own.
VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class TextData(Dataset):
    """Three parts of one text. What came without a validation or test part has its last twentieth held out for both."""

    kind: ClassVar[str] = "text"
    holds: ClassVar[str] = "a text"

    name: str
    train: str
    validation: str
    test: str
    split: bool = True  #: whether it came in parts
    read: str = ""

    @property
    def words(self) -> str:
        return self.train

    def _more(self) -> str:
        return " in characters"

    def as_text(self) -> "TextData":
        return self

    def as_sentences(self) -> "SentenceData":
        from abridged.data.sentences import sentences_of_lines

        parts = {part: getattr(self, part) for part in PARTS} if self.split else {"train": self.train + self.validation}
        if self.split and not self.has_test:
            del parts["test"]
        return replace(
            sentences_of_lines(self.name, {part: lines_of(text) for part, text in parts.items()}), read=self.read
        )


def load_text(data: str | Path) -> TextData:
    """Read text by name or path.

    Args:
        data: `wikitext-2` (bundled), `wikitext-103` or `ptb` (from a hub), a .txt, .txt.xz or .tokens file, a file of
            rows with a column `text`, a folder of such files (train, validation and test by that word in their path),
            or the name of a `datasets` dataset, with its configuration after a colon.

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
    else:
        check_there(name)
        loaded = _from_datasets(name)
    return _not_empty(loaded)


def _not_empty(text: TextData) -> TextData:
    if not text.to_evaluate.strip():
        raise AbridgedError(f"the text '{text.name}' is empty")
    return text


def _bundled_wikitext2() -> TextData:
    folder = files("abridged") / "assets" / "wikitext-2"

    def read(split: str) -> str:
        return lzma.decompress((folder / f"{split}.txt.xz").read_bytes()).decode()

    return TextData("wikitext-2", read("train"), read("validation"), read("test"))


def _without_splits(name: str, text: str) -> TextData:
    """Hold out the last twentieth, cut at a line end."""
    cut = text.rfind("\n", 0, int(len(text) * (1 - VALIDATION_SHARE))) + 1
    cut = cut or int(len(text) * (1 - VALIDATION_SHARE))
    held = text[cut:]
    return TextData(name, text[:cut], held, held, split=False)


def _with_splits(name: str, texts: dict[str, str]) -> TextData:
    alone = _without_splits(name, texts["train"])
    if not texts["validation"] and not texts["test"]:
        return alone
    train = texts["train"] if texts["validation"] else alone.train
    validation = texts["validation"] or alone.validation
    return TextData(name, train, validation, texts["test"] or validation)


def _folder(name: str, folder: Path) -> TextData:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(TEXT_SUFFIXES))
    if not paths:
        raise AbridgedError(f"the folder {name} holds no {', '.join(TEXT_SUFFIXES)} file")
    of = by_split(folder, paths)
    read = {path: _read(path) for some in of.values() for path in some}
    told = account_of_files(name, {str(path): len(read.get(path, "")) for path in paths}, "characters")
    texts = {split: "\n".join(read[path] for path in some) for split, some in of.items()}
    return replace(_with_splits(name, texts), read=told)


def _read(path: Path) -> str:
    if is_rows(path):
        return _text_of(rows(path))
    if path.suffix.lower() != ".xz":
        return read_text(path)
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, lzma.LZMAError, OSError) as error:
        raise AbridgedError(f"cannot read {path}: {error}") from error


def _text_of(some: Iterable[Row]) -> str:
    texts = []
    for row in some:
        if not isinstance(row.get("text"), str):
            raise AbridgedError(f"{row.place} has no text in a column 'text': it has {', '.join(map(str, row))}")
        texts.append(row["text"])
    return "\n".join(texts)


def _from_datasets(name: str) -> TextData:
    dataset_name, _, configuration = name.partition(":")
    repository, config, column = _HUB.get(name, (dataset_name, configuration or None, "text"))
    splits: Any = hub_splits(repository, config, not_found("text", name))
    try:
        texts = {split: "\n".join(splits[split][column]) if split in splits else "" for split in PARTS}
    except (KeyError, TypeError):
        raise AbridgedError(f"the dataset '{name}' has no texts in a column '{column}'") from None
    return _with_splits(name, texts)


def text_of_rows(name: str, parts: dict[str, list[Row]]) -> TextData:
    """The column `text` of rows.

    Raises:
        AbridgedError: there is no such column, or nothing in it.
    """
    return _not_empty(_with_splits(name, {split: _text_of(some) for split, some in parts.items()}))


def check_there(name: str | Path) -> None:
    """Raise AbridgedError for what can only be a file or a folder, and is not there; a hub may have other names."""
    told, path = str(name), Path(name).expanduser()
    if told in BUILT_IN or path.exists():
        return
    if path.suffix in TEXT_SUFFIXES or told.startswith((".", "/", "~")):
        raise AbridgedError(f"no such file or folder: {told}")


def not_found(what: str, name: str) -> str:
    """What to say of a name that is none, before the reason."""
    return (
        f"no {what} called '{name}': it is no file or folder, no built-in name ({', '.join(BUILT_IN)}), and datasets "
        "could not load it"
    )


def sentences(text: str) -> list[str]:
    """A text's sentences of four words and more, without headings, and without the signs that WikiText escapes hyphens
    and separators with (`1 @,@ 000`)."""
    lines = [line.strip() for line in lines_of(re.sub(r" @(\W)@ ", r"\1", text)) if not line.strip().startswith("=")]
    found = (sentence.strip() for line in lines for sentence in re.split(r"(?<=[.!?])\s+", line))
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def count_words(text: str) -> int:
    """Whitespace-separated tokens plus one per line end, the usual count for WikiText (245,569 in its test split)."""
    return len(text.split()) + text.count("\n")

"""Sentences, or pairs of them, with a label or a score: GLUE by task, and a person's own columns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from abridged.core.errors import AbridgedError
from abridged.core.text import lines_of, read_text
from abridged.data.dataset import PARTS, Dataset, announce, hub_splits
from abridged.data.padding import PaddedTexts, tokenized
from abridged.data.rows import Parts, Row, listed, rows_of_hub, tab_separated, unique
from abridged.data.rows import rows as rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from abridged.data.sentences import SentenceData

#: Held out of the training part to choose models by, where the development part is what is reported.
HELD_OUT = 0.1
#: The task of one's own file, where it must be said that its columns are texts and labels.
OWN = "labels"


@dataclass(frozen=True)
class GlueTask:
    """Where a task of GLUE (Wang et al., ICLR 2019, arXiv:1804.07461) keeps what.

    Attributes:
        first, second, label: columns; of CoLA's files, which have no header, their numbers.
        labels: as they stand in the files, in the order of their ids; None for a score.
        metrics: names in `abridged.evaluation.scores.METRICS`, the first is the one that is quoted.
        train, test: names of the files that there may be, the first that is there is read.
        hub: the configuration in `nyu-mll/glue`, and its columns where they differ.
    """

    first: str
    second: str | None
    label: str
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    train: tuple[str, ...] = ("train.tsv",)
    test: tuple[str, ...] = ("dev.tsv",)
    hub: dict[str, str] = field(default_factory=dict)
    header: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.first, self.second, self.label)))


_YES_NO, _ENTAILED = ("0", "1"), ("entailment", "not_entailment")
GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask("sentence", None, "label", _YES_NO, ("accuracy",)),
    "cola": GlueTask("3", None, "1", _YES_NO, ("matthews",), hub={"3": "sentence", "1": "label"}, header=False),
    "mrpc": GlueTask(
        "#1 String", "#2 String", "Quality", _YES_NO, ("accuracy", "f1"),
        ("msr_paraphrase_train.txt", "train.tsv"), ("msr_paraphrase_test.txt", "test.tsv", "dev.tsv"),
        {"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    ),
    "rte": GlueTask("sentence1", "sentence2", "label", _ENTAILED, ("accuracy",)),
    "stsb": GlueTask("sentence1", "sentence2", "score", None, ("pearson", "spearman"), hub={"score": "label"}),
    "qnli": GlueTask("question", "sentence", "label", _ENTAILED, ("accuracy",)),
    "qqp": GlueTask(
        "question1", "question2", "is_duplicate", _YES_NO, ("accuracy", "f1"), hub={"is_duplicate": "label"}
    ),
    "mnli": GlueTask(
        "sentence1", "sentence2", "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",),
        test=("dev_matched.tsv",), hub={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """One text, or two, and its label as it is called, or its score."""

    first: str
    second: str | None
    label: str | float


@dataclass(frozen=True)
class LabelledData(Dataset):
    """Three parts. The test part is what is reported once; models are chosen on the validation part."""

    kind: ClassVar[str] = "labels"
    holds: ClassVar[str] = "labelled texts"

    name: str
    labels: tuple[str, ...] | None  #: names in the order of their ids; None for a score
    metrics: tuple[str, ...]
    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]
    columns: tuple[str, ...]  #: of the texts and of the label
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    split: bool = True
    task: str | None = None  #: of GLUE
    read: str = ""

    @property
    def words(self) -> str:
        return "\n".join(text for row in self.train for text in (row.first, row.second) if text)

    def _more(self) -> str:
        columns = f", {' and '.join(self.columns)}"
        if self.labels is None:
            return f"{columns} (scores)"
        parts = (self.train, self.validation, self.test if self.has_test else [])
        counts = Counter(row.label for part in parts for row in part)
        return f"{columns} ({listed([f'{label} {counts[label]:,}' for label in self.labels], 20)})"

    def check_to_learn(self) -> None:
        if self.labels is not None and len(self.labels) < 2:
            raise AbridgedError(f"'{self.name}' has fewer than two different labels in its column '{self.columns[-1]}'")

    def as_labelled(self) -> LabelledData:
        return self

    def as_sentences(self) -> SentenceData:
        from abridged.data.sentences import ScoredPair, SentenceData

        parts = {part: getattr(self, part) for part in PARTS if part != "test" or self.has_test}
        texts = {
            part: [("a pair", text) for row in rows for text in (row.first, row.second) if text]
            for part, rows in parts.items()
        }
        scores = self.labels is None and len(self.columns) == 3
        pairs = {
            part: [ScoredPair(row.first, row.second or "", float(row.label)) for row in getattr(self, part)]
            for part in PARTS if scores
        }  # fmt: skip
        # that a sentence is in several pairs is no fault of theirs
        found = SentenceData.of(self.name, texts)
        return replace(found, left_out=self.left_out, split=self.split, scored=pairs, task=self.task, read=self.read)


def load_glue(data: str | Path, name: str, seed: int = 0) -> LabelledData:
    """Read a task of `GLUE` from a folder with its files, or from the hub where `data` is `glue`.

    Args:
        seed: of what is held out of the training part.

    Raises:
        AbridgedError: no such task, file or column; a label that is not among the task's.
    """
    if name not in GLUE:
        raise AbridgedError(f"no task called '{name}': there are {', '.join(GLUE)}; {OWN}, tokens and mlm for your own")
    task, where = GLUE[name], Path(data).expanduser()
    if str(data) == "glue":
        parts = _from_hub(name, task)
    elif where.is_dir():
        parts = {part: _read_glue(where, getattr(task, part), task) for part in ("train", "test")}
    else:
        raise AbridgedError(f"no folder {data} with the files of {name} ({task.train[0]}, {task.test[0]})")
    left_out: dict[str, list[str]] = {}
    found = {part: _labelled(rows, task, f"{name} in {data}", left_out) for part, rows in parts.items()}
    train, validation = _hold_out(found["train"], seed)
    return LabelledData(
        name, task.labels, task.metrics, train, validation, found["test"], task.columns, left_out, task=name
    )


def load_scored(path: Path, name: str, columns: tuple[str, ...] | None = None, seed: int = 0) -> LabelledData:
    """Read pairs with scores from one file of rows, for a task of `GLUE` that is of such: all of them are to measure.

    Args:
        columns: of the two texts and the score; None: those of GLUE's files, or three that there are.
        seed: of what is held out, should they be learned from.

    Raises:
        AbridgedError: there are no rows, or no such columns; a score is no number.
    """
    found = list(rows_of(path))
    if not found:
        raise AbridgedError(f"'{path}' has no rows")
    there = tuple(column for column in found[0] if column)
    known = columns or next((some for some in (GLUE[name].columns, there) if set(some) <= set(there)), there)
    missing = [column for column in known if column not in found[0]]
    if missing:
        raise AbridgedError(f"'{path}' has no column '{missing[0]}': it has {listed(there)}")
    if len(known) != 3:
        raise AbridgedError(
            f"'{path}' has the columns {listed(there)}: say which are two texts and their score, as in "
            "--columns sentence1,sentence2,score"
        )
    if columns is None and _is_number(known[-1]):
        raise AbridgedError(f"the first line of '{path}' has the score '{known[-1]}', and must name the columns")
    task, left_out = GlueTask(*known, None, GLUE[name].metrics), {}  # type: ignore[var-annotated]
    kept = _labelled(found, task, f"'{path}'", left_out)
    train, validation = _hold_out(kept, seed)
    return LabelledData(
        str(path), None, task.metrics, train, validation, validation, known, left_out, split=False, task=name
    )


def _read_glue(folder: Path, names: Sequence[str], task: GlueTask) -> list[Row]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise AbridgedError(f"the folder {folder} has no {' or '.join(names)}")
    try:
        lines = tab_separated(path)
        head = unique(next(lines, (0, []))[1] if task.header else [str(number) for number in range(4)])
        # what QQP has of lines with other numbers of cells is nothing that its columns name
        found = ((n, dict(zip(head, cells, strict=True)) if len(cells) == len(head) else {}) for n, cells in lines)
        return [Row(values, path.name, number, 1) for number, values in found]
    except (OSError, ValueError) as error:
        raise AbridgedError(f"cannot read {path}: {error}") from error


def _from_hub(name: str, task: GlueTask) -> Parts:
    splits: Any = hub_splits("nyu-mll/glue", name, f"datasets could not load {name} of GLUE")
    test = {"mnli": "validation_matched", "mrpc": "test"}.get(name, "validation")
    names = {column: task.hub.get(column, column) for column in task.columns}

    def row(found: dict[str, Any]) -> dict[str, Any]:
        given = {column: found[theirs] for column, theirs in names.items()}
        if task.labels is not None:
            given[task.label] = task.labels[given[task.label]]
        return given

    return {part: rows_of_hub(split, map(row, splits[split])) for part, split in (("train", "train"), ("test", test))}


def _labelled(rows: Sequence[Row], task: GlueTask, where: str, left_out: dict[str, list[str]]) -> list[Labelled]:
    """The rows that are whole; the places of others go to `left_out`."""
    kept = []
    for row in rows:
        cells = [row.text(column) for column in task.columns]
        if not _is_label(cells[-1], task.labels):
            cells[-1] = ""
        if "" in cells:
            left_out.setdefault(f"without {task.columns[cells.index('')]}", []).append(row.place)
            continue
        label = _label(cells[-1], task.labels, f"{where} has", row.place)
        kept.append(Labelled(cells[0], cells[1] if task.second else None, label))
    if rows and not kept:
        raise AbridgedError(f"{where} has no row with {', '.join(task.columns)}")
    return kept


def _is_label(text: str, labels: Sequence[str] | None) -> bool:
    """Whether a cell is one: "nan" is what a table writes where there is none, and "-" what GLUE does."""
    return text.lower() not in ("", "nan") and (text != "-" or "-" in (labels or ()))


def _label(label: str, labels: tuple[str, ...] | None, where: str, place: str) -> str | float:
    if labels is None:
        if not _is_number(label) or not math.isfinite(float(label)):
            raise AbridgedError(f"{where} the score '{label}', which is no number, in {place}")
        return float(label)
    if label not in labels:
        raise AbridgedError(f"{where} the label '{label}', which is none of {', '.join(labels)}, in {place}")
    return label


def held_out(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of what is trained on, of so many, and of what is held out of it, at least one."""
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, round(HELD_OUT * count))
    return order[held:], order[:held]


def _hold_out(rows: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    left, held = held_out(len(rows), seed)
    return [rows[i] for i in left], [rows[i] for i in held]


def own_labels(name: str, parts: Parts, columns: tuple[str, ...] | None = None, seed: int = 0) -> LabelledData:
    """Labelled texts of a person's own rows.

    Args:
        columns: (text, label) or (text, second text, label); None: the first ones that have names.
        seed: of what is held out of the training part, where there is no validation part.

    Raises:
        AbridgedError: no such column, a first line that names none, no row that has all, or one label in two spellings.
    """
    first = next(row for rows in parts.values() for row in rows)
    asked, named = columns is not None, tuple(column for column in first if column)
    columns = columns or named[: 3 if len(named) == 3 else 2]
    if len(columns) not in (2, 3):
        raise AbridgedError("name two columns (text, label) or three (text, second text, label)")
    missing = [column for column in columns if column not in first]
    if missing:
        raise AbridgedError(f"'{name}' has no column '{missing[0]}': it has {', '.join(map(str, first))}")
    where: dict[str, str] = {}
    for row in (row for rows in parts.values() for row in rows):
        where.setdefault(row.text(columns[-1]), row.place)
    found = sorted(label for label in where if _is_label(label, ("-",)))
    numbers = [label for label in found if _is_number(label)]
    score = len(numbers) == len(found) and len(set(map(float, numbers))) > 20
    if not asked and (columns[-1] in found or (score and _is_number(columns[-1]))):
        raise AbridgedError(f"the first line of '{name}' has the label '{columns[-1]}', and must name the columns")
    seen: dict[float, str] = {}
    for label in () if score else numbers:
        if (other := seen.setdefault(float(label), label)) != label:
            raise AbridgedError(
                f"'{name}' has the labels '{other}', in {where[other]}, and '{label}', in {where[label]}, which are "
                "one number: write it in one way"
            )
    labels = None if score else tuple(found)
    task = GlueTask(columns[0], columns[1] if len(columns) == 3 else None, columns[-1], labels, ())
    left_out: dict[str, list[str]] = {}
    read = {part: _labelled(rows, task, f"'{name}'", left_out) for part, rows in parts.items()}
    train, validation, test = (read[part] for part in ("train", "validation", "test"))
    split = bool(validation or test)
    if not validation:
        train, validation = _hold_out(train, seed)
    metrics = ("pearson", "spearman") if score else ("accuracy", "f1") if len(found) == 2 else ("accuracy",)
    return LabelledData(name, labels, metrics, train, validation, test or validation, columns, left_out, split)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", text, re.ASCII | re.I) is not None


def read_texts(path: Path) -> tuple[list[str], list[str] | None]:
    """The lines of a file as texts, and as second texts what follows a tab; empty lines stay, so that lines match.

    Raises:
        AbridgedError: it cannot be read, is empty, or only some lines have a tab.
    """
    lines = lines_of(read_text(path))
    if not any(line.strip() for line in lines):
        raise AbridgedError(f"{path} has no text")
    empty = sum(not line.strip() for line in lines)
    announce(f"{path}: {len(lines):,} lines" + (f", {empty:,} of them empty" if empty else ""))
    parts = [line.split("\t") for line in lines]
    if len({len(part) for part in parts}) > 1 or len(parts[0]) > 2:
        raise AbridgedError(f"{path} has lines with and without a tab, or with several: give one text a line, or two")
    return [part[0] for part in parts], [part[1] for part in parts] if len(parts[0]) == 2 else None


@dataclass(frozen=True)
class TokenSentences(PaddedTexts):
    """Labelled sentences as token ids, cut to what the model's positions allow; `labels` are (examples,).

    They are int64 ids, or float32 scores.
    """

    cut: int  #: how many were longer than allowed

    @classmethod
    def of(
        cls, rows: Sequence[Labelled], tokenizer: PreTrainedTokenizerBase, labels: dict[str, int] | None, context: int
    ) -> TokenSentences:
        """Tokenise `rows`; `labels` maps names to the model's ids, None for scores."""
        firsts, seconds = [row.first for row in rows], [row.second for row in rows]
        # nothing but a line break parts two texts of a decoder
        apart = "" if tokenizer.num_special_tokens_to_add(pair=True) else "\n"
        given = (firsts,) if seconds[0] is None else (firsts, [apart + (second or "") for second in seconds])
        whole, cut = tokenized(tokenizer, context, *given)
        values = [row.label if labels is None else labels[str(row.label)] for row in rows]
        return cls(
            ids=whole["ids"],
            types=whole["types"],
            labels=np.array(values, dtype=np.float32 if labels is None else np.int64),
            pad=tokenizer.pad_token_id or 0,
            cut=cut,
        )

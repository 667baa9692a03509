"""Sentences, or pairs of them, with a label or a score: GLUE by task, and a person's own columns."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abridged.data.padding import PaddedTexts
from abridged.data.rows import rows_by_split
from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
class LabelledData:
    """Three parts. The test part is what is reported once; models are chosen on the validation part."""

    name: str
    labels: tuple[str, ...] | None  #: names in the order of their ids; None for a score
    metrics: tuple[str, ...]
    train: list[Labelled]
    validation: list[Labelled]
    test: list[Labelled]
    dropped: int = 0


def load_labelled(
    data: str | Path, task: str | None = None, columns: tuple[str, ...] | None = None, seed: int = 0
) -> LabelledData:
    """Read labelled sentences.

    Args:
        data: a folder with the files of a GLUE task, a .tsv, .csv, .jsonl or .parquet file of a person's own (or a
            folder with such of the words train, validation and test in their names), or `glue` for the hub's.
        task: one of `GLUE`; None or `labels` for a file of one's own.
        columns: of one's own file, (text, label) or (text, second text, label); None: its first columns.
        seed: of what is held out of the training part.

    Raises:
        AbridgedError: no such task, file or column; a label that is not among the task's; fewer than two labels.
    """
    if task not in (None, OWN):
        return _glue(data, task, seed)
    return _own(Path(data).expanduser(), columns, seed)


def _glue(data: str | Path, name: str, seed: int) -> LabelledData:
    if name not in GLUE:
        raise AbridgedError(f"no task called '{name}': there are {', '.join(GLUE)}, and {OWN} for your own")
    task, where = GLUE[name], Path(data).expanduser()
    if str(data) == "glue":
        parts = _from_hub(name, task)
    elif where.is_dir():
        parts = {part: _read_glue(where, getattr(task, part), task) for part in ("train", "test")}
    else:
        raise AbridgedError(f"no folder {data} with the files of {name} ({task.train[0]}, {task.test[0]})")
    found = {part: _labelled(rows, task, f"{name} in {data}") for part, rows in parts.items()}
    train, validation = _hold_out(found["train"][0], seed)
    dropped = sum(count for _, count in found.values())
    return LabelledData(name, task.labels, task.metrics, train, validation, found["test"][0], dropped)


def _read_glue(folder: Path, names: Sequence[str], task: GlueTask) -> list[dict[str, Any]]:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise AbridgedError(f"the folder {folder} has no {' or '.join(names)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            # sentences hold quotation marks that quote nothing
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            head = next(reader) if task.header else None
            return [dict(zip(head or map(str, range(len(row))), row, strict=False)) for row in reader if row]
    except (UnicodeDecodeError, OSError, csv.Error, StopIteration) as error:
        raise AbridgedError(f"cannot read {path}: {error}") from error


def _from_hub(name: str, task: GlueTask) -> dict[str, list[dict[str, Any]]]:
    try:
        from datasets import load_dataset

        splits = load_dataset("nyu-mll/glue", name)
    except Exception as error:  # datasets raises a dozen kinds; to a person they all mean: not found or not reachable
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AbridgedError(f"datasets could not load {name} of GLUE ({first})") from error
    test = {"mnli": "validation_matched", "mrpc": "test"}.get(name, "validation")
    names = {column: task.hub.get(column, column) for column in (task.first, task.second, task.label) if column}

    def row(found: dict[str, Any]) -> dict[str, Any]:
        given = {column: found[theirs] for column, theirs in names.items()}
        if task.labels is not None:
            given[task.label] = task.labels[given[task.label]]
        return given

    return {"train": [row(r) for r in splits["train"]], "test": [row(r) for r in splits[test]]}


def _labelled(rows: Sequence[dict[str, Any]], task: GlueTask, where: str) -> tuple[list[Labelled], int]:
    """The rows that are whole, and how many were not."""
    kept, dropped = [], 0
    for row in rows:
        first = row.get(task.first)
        second = row.get(task.second) if task.second else None
        label = row.get(task.label)
        if not first or (task.second and not second) or label in (None, "", "-"):
            dropped += 1
            continue
        kept.append(Labelled(str(first), second, _label(label, task.labels, where)))
    if not kept:
        raise AbridgedError(f"{where} has no row with {', '.join(filter(None, (task.first, task.second, task.label)))}")
    return kept, dropped


def _label(label: Any, labels: tuple[str, ...] | None, where: str) -> str | float:
    if labels is None:
        try:
            return float(label)
        except ValueError:
            raise AbridgedError(f"{where} has the score '{label}', which is no number") from None
    if str(label) not in labels:
        raise AbridgedError(f"{where} has the label '{label}', which is none of {', '.join(labels)}")
    return str(label)


def _hold_out(rows: list[Labelled], seed: int) -> tuple[list[Labelled], list[Labelled]]:
    order = np.random.default_rng(seed).permutation(len(rows))
    held = max(1, round(HELD_OUT * len(rows)))
    return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def _own(where: Path, columns: tuple[str, ...] | None, seed: int) -> LabelledData:
    parts = rows_by_split(where)
    first = next((rows[0] for rows in parts.values() if rows), None)
    if first is None:
        raise AbridgedError(f"'{where}' has no rows")
    columns = columns or tuple(first)[: 3 if len(first) == 3 else 2]
    if len(columns) not in (2, 3):
        raise AbridgedError("name two columns (text, label) or three (text, second text, label)")
    missing = [column for column in columns if column not in first]
    if missing:
        raise AbridgedError(f"'{where}' has no column '{missing[0]}': it has {', '.join(map(str, first))}")
    found = sorted({str(row.get(columns[-1]) or "").strip() for rows in parts.values() for row in rows} - {""})
    if len(found) < 2:
        raise AbridgedError(f"'{where}' has fewer than two different labels in its column '{columns[-1]}'")
    score = len(found) > 20 and all(map(_is_number, found))
    labels = None if score else tuple(found)
    task = GlueTask(columns[0], columns[1] if len(columns) == 3 else None, columns[-1], labels, ())
    read = {part: _labelled(_stripped(rows), task, f"'{where}'") if rows else ([], 0) for part, rows in parts.items()}
    train, validation, test = (read[part][0] for part in ("train", "validation", "test"))
    if not validation:
        train, validation = _hold_out(train, seed)
    metrics = ("pearson", "spearman") if score else ("accuracy", "f1") if len(found) == 2 else ("accuracy",)
    dropped = sum(count for _, count in read.values())
    return LabelledData(str(where), labels, metrics, train, validation, test or validation, dropped)


def _stripped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value.strip() if isinstance(value, str) else value for key, value in row.items()} for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_texts(path: Path) -> tuple[list[str], list[str] | None]:
    """The lines of a file as texts, and as second texts what follows a tab; empty lines stay, so that lines match.

    Raises:
        AbridgedError: it cannot be read, is empty, or only some lines have a tab.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise AbridgedError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not any(line.strip() for line in lines):
        raise AbridgedError(f"{path} has no text")
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
        whole = tokenizer(*given, return_attention_mask=False, verbose=False)
        cut = sum(len(ids) > context for ids in whole["input_ids"])
        if cut:
            whole = tokenizer(*given, truncation=True, max_length=context, return_attention_mask=False, verbose=False)
        types = whole.get("token_type_ids")
        values = [row.label if labels is None else labels[str(row.label)] for row in rows]
        return cls(
            ids=[np.asarray(ids, dtype=np.int64) for ids in whole["input_ids"]],
            types=None if types is None else [np.asarray(t, dtype=np.int64) for t in types],
            labels=np.array(values, dtype=np.float32 if labels is None else np.int64),
            pad=tokenizer.pad_token_id or 0,
            cut=cut,
        )

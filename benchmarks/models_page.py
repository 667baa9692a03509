"""The page docs/models.md of what benchmarks/families.py found."""

from __future__ import annotations

from typing import Any

#: Differences up to here, in standard deviations, are round-off of FP32.
SAME = 1e-4
_METHODS = ("2 bits", "1 bit", "factored", "pruned")
_TITLES = {
    "first": "Types that everything is done to",
    "second": "Further types",
    "library": "Pixels and sounds, through the library",
    "heads": "Every head",
    "refused": "Refused",
}
_TOP = """# Models

Every type is described by a view that is derived from its class and config; no type has code of its own. Each row is a
tiny random model of that class, made smaller in four ways (quantised at 2 and at 1 bits, factored, pruned), trained for
a step, packed, written, and reloaded in a fresh process, which must answer as the trained model did and write the same
tokens or give the same labels. *Dense*: the export that stock transformers load. *Logits*: the head of the body's last
hidden state, as objectives make them. *Steps*: token by token with a cache, against the text at once. A run tries its
methods in the same way on a small model of its config before any work, and refuses what would change the answers.

`yes` is a difference of at most 1e-4 standard deviations of the answers. Made by `python benchmarks/families.py` with
transformers {transformers}; the numbers are in benchmarks/results/families.jsonl.
"""


def page(every: dict[str, dict[str, Any]]) -> str:
    """The whole page, of rows by name of the type."""
    notes: list[str] = []
    made = [_TOP.format(transformers=" and ".join(sorted({row["versions"]["transformers"] for row in every.values()})))]
    for group, title in _TITLES.items():
        rows = {name: row for name, row in every.items() if row["group"] == group}
        refused = {name: row for name, row in rows.items() if "refused" in row}
        made.append(f"\n## {title}\n")
        if len(rows) > len(refused):
            made.append("| model | class | " + " | ".join(_METHODS) + " | writes or labels | dense | logits | steps |")
            made.append("|---|---|" + "---|" * (len(_METHODS) + 4))
        made += [_row(name, row, notes) for name, row in rows.items() if name not in refused]
        if refused:
            made.append("\n| model | |\n|---|---|")
            made += [f"| {name} | {row['refused']} |" for name, row in refused.items()]
    made.append("")
    made += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(made) + "\n"


def _row(name: str, row: dict[str, Any], notes: list[str]) -> str:
    cells = row["cells"]
    shown = [_method(row, column, notes) for column in _METHODS]
    writes = [cells[column].get("writes") for column in _METHODS if "reloaded" in (cells[column] or {})]
    told = "–" if all(one is None for one in writes) else "yes" if all(one in (True, None) for one in writes) else "NO"
    further = [_number(cells.get(column), notes) for column in ("dense", "logits", "steps")]
    return f"| {name} | {row['class']} | " + " | ".join([*shown, told, *further]) + " |"


def _method(row: dict[str, Any], column: str, notes: list[str]) -> str:
    cell = row["cells"][column] or {}
    if "reloaded" not in cell:
        return _number(cell, notes)
    told = _number(cell["reloaded"], notes)
    if column == "pruned" and row["cells"].get("cut") is not None and _number(row["cells"]["cut"], notes) != "yes":
        return "NO"
    return f"{told} ({_noted(row['note'], notes)})" if column == "pruned" and "note" in row else told


def _number(value: Any, notes: list[str]) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        sentence = value.get("refused") or value.get("failed") or "not run"
        return f"{'no' if 'refused' in value else 'NO'} ({_noted(sentence, notes)})"
    return "yes" if value <= SAME else f"NO: {value:.1g}"


def _noted(sentence: str, notes: list[str]) -> str:
    if sentence not in notes:
        notes.append(sentence)
    return str(notes.index(sentence) + 1)

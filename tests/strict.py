"""A strict reading of data files that shares no line with the one in src: what the two make of a file is the same."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.data.labelled import read_texts
from abridged.data.opening import open_data
from abridged.data.rows import rows
from abridged.data.text import load_text


class Refused(Exception):
    """A file, or a row of it, is not what its name says."""


def check(path: Path) -> None:
    """Fails where a file is read otherwise than strictly, or a fault does not end in one sentence."""
    if path.suffix == ".txt":
        text = _outcome(_text, path)
        assert _outcome(lambda: load_text(path).to_evaluate) == (text if text and text.strip() else None)
        assert _outcome(lambda: read_texts(path)) == _outcome(_lines, text)
        return
    if path.suffix == ".conll":
        assert _outcome(_tagged_by_us, path) == _outcome(_tagged, path)
        return
    expected = _outcome(_rows, path)
    found = _outcome(lambda: list(rows(path)))
    assert (repr(found) if found is None else repr([dict(row) for row in found])) == repr(expected)
    assert _outcome(_labelled_by_us, path) == _outcome(_labelled, expected)


def _outcome(read: Any, *given: Any) -> Any:
    """What `read` gives; None where it refuses."""
    try:
        return read(*given)
    except Refused:
        return None
    except AbridgedError as error:
        sentence = str(error).encode().decode()
    assert "\n" not in sentence
    return None


def _labelled_by_us(path: Path) -> Any:
    data = open_data(path).as_labelled()
    data.describe().encode()
    texts = Counter(map(repr, ((row.first, row.second, row.label) for row in data.to_evaluate)))
    return texts, data.labels, data.dropped


def _tagged_by_us(path: Path) -> Any:
    data = open_data(path).as_tagged()
    data.describe().encode()
    return Counter((tuple(one.words), one.tags) for one in data.to_evaluate)


def _tagged(path: Path) -> Any:
    """Texts with an empty line between; of each other line the first cell is a word, and the last its tag."""
    texts: list[list[tuple[str, str]]] = [[]]
    width, tabs = 0, False
    for line in _text(path).split("\n"):
        if not line or line.isspace():
            texts.append([])
            continue
        if not width:
            if line[:2] == "# ":
                continue
            tabs = "\t" in line
        cells = [cell.strip() for cell in line.split("\t")] if tabs else line.split()
        if cells[0] == "-DOCSTART-" or (width and line[0] == "#" and len(cells) != width):
            continue
        width = width or len(cells)
        if width < 2 or len(cells) != width or not cells[0] or not cells[-1]:
            raise Refused
        texts[-1].append((cells[0], cells[-1]))
    if not any(texts):
        raise Refused
    return Counter(tuple(zip(*some, strict=True)) for some in texts if some)


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise Refused from None
    return text[text.startswith("\ufeff") :].replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str | None) -> Any:
    if text is None or not text.strip():
        raise Refused
    cells = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    widths = {len(some) for some in cells}
    if widths == {1}:
        return [first for (first,) in cells], None
    if widths == {2}:
        return [first for first, _ in cells], [second for _, second in cells]
    raise Refused


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".tsv":
        return _table([line.split("\t") if line else [] for line in _text(path).split("\n")])
    if path.suffix == ".csv":
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            raise Refused from None
        return _table(_quoted(text[text.startswith("\ufeff") :]))
    text = _text(path)
    if path.suffix == ".json" and text.lstrip().startswith("["):
        found = [_object(value) for value in _json(text)]
    else:
        found = [_object(_json(line)) for line in text.split("\n") if line and not line.isspace()]
    return found


def _table(lines: list[list[str]]) -> list[dict[str, Any]]:
    lines = [line for line in lines if line]
    if not lines:
        return []
    names = [name.strip() for name in lines[0]]
    if max(Counter(filter(None, names)).values(), default=1) > 1 or any(len(line) != len(names) for line in lines):
        raise Refused
    return [dict(zip(names, line, strict=True)) for line in lines[1:]]


def _quoted(text: str) -> list[list[str]]:
    """RFC 4180, a sign at a time; a quotation mark inside of a cell that did not begin with one is itself."""
    if "\0" in text:
        raise Refused
    lines: list[list[str]] = []
    line: list[str] = []
    cell, state = "", "begin"
    text = re.sub("\r\n|\r|\n", lambda end: end[0] + "\0", text)  # \0 ends a line, unless it is quoted
    signs = iter(text if text.endswith("\0") else text + "\0")
    for sign in signs:
        if state == "quoted":
            if sign == '"':
                state = "closed"
            elif sign != "\0":
                cell += sign
            continue
        if sign == '"' and state == "begin":
            state = "quoted"
        elif sign == '"' and state == "closed":
            cell, state = cell + sign, "quoted"
        elif sign == ",":
            line, cell, state = [*line, cell], "", "begin"
        elif sign == "\0":
            lines.append([*line, cell] if line or cell or state != "begin" else [])
            line, cell, state = [], "", "begin"
        elif sign in "\r\n":
            continue
        elif state == "closed":
            raise Refused
        else:
            cell, state = cell + sign, "plain"
    if state == "quoted":
        raise Refused
    return lines


def _json(text: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in found}) != len(found):
            raise Refused
        return dict(found)

    try:
        value = json.loads(text, object_pairs_hook=pairs)
        json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError):
        raise Refused from None
    return value


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise Refused
    return value


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        if max(Counter(filter(None, table.column_names)).values(), default=1) > 1:
            raise Refused
        columns = {name: table.column(i).to_pylist() for i, name in enumerate(table.column_names)}
    except (OSError, ValueError, TypeError, NotImplementedError, pyarrow.ArrowException):
        raise Refused from None
    return [{name: values[i] for name, values in columns.items()} for i in range(table.num_rows)]


def _labelled(found: list[dict[str, Any]] | None) -> Any:
    """Labelled texts of the first two columns that have names, or of three where there are just three."""
    if not found:
        raise Refused
    names = [name for name in found[0] if name]
    columns = names if len(names) == 3 else names[:2]
    if len(columns) < 2:
        raise Refused
    cells = [[_cell(row.get(name)) for name in columns] for row in found]
    for row in cells:
        row[-1] = "" if row[-1].lower() == "nan" else row[-1]
    labels = sorted({row[-1] for row in cells} - {""})
    numbers = [value for value in map(_number, labels) if value is not None]
    scores = len(numbers) == len(labels) and len(set(numbers)) > 20
    if columns[-1] in labels or (scores and _number(columns[-1]) is not None):
        raise Refused  # the first line is a row
    if not scores and len(set(numbers)) < len(numbers):
        raise Refused  # one number in two spellings
    whole = [row for row in cells if "" not in row]
    if not whole or (scores and any(math.isinf(float(row[-1])) for row in whole)):
        raise Refused
    texts = [(row[0], row[1] if len(row) == 3 else None, float(row[-1]) if scores else row[-1]) for row in whole]
    return Counter(map(repr, texts)), None if scores else tuple(labels), len(cells) - len(whole)


def _cell(value: Any) -> str:
    if value is None or (type(value) is float and math.isnan(value)):
        return ""
    if type(value) is float and value == math.floor(value) and abs(value) < 2**53 if _finite(value) else False:
        return f"{value:.0f}".replace("-0", "0") if value == 0 else f"{value:.0f}"
    if type(value) in (str, bool, int, float):
        return f"{value}".strip()
    raise Refused


def _finite(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _number(text: str) -> float | None:
    if text.lower().lstrip("+-") in ("inf", "infinity") and len(text) - len(text.lstrip("+-")) < 2:
        return float(text)
    if not set(text) <= set("+-.0123456789eE"):
        return None
    try:
        return float(text)
    except ValueError:
        return None

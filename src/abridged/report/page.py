"""The page itself: sections through templates into one HTML file that needs nothing else."""

import json
import os
from pathlib import Path

import jinja2
from markupsafe import Markup

from abridged.core.atomic import write_atomically
from abridged.report import text
from abridged.report.data import ReportData
from abridged.report.sections import SECTIONS, what_was_lost


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """Write `data` as one self-contained HTML file: no script, and no request to anywhere.

    A section whose data is absent is left out. The file appears complete or not at all.

    Returns:
        The path written.
    """
    path = Path(path)
    write_atomically(path, render(data))
    return path


def render(data: ReportData) -> str:
    """The HTML of a report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("abridged.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["literal"] = lambda value: json.dumps(value, ensure_ascii=False)
    for name in ("megabytes", "number", "percent", "readable", "shortened", "significant", "times"):
        environment.filters[name] = getattr(text, name)
    parts = []
    for section in SECTIONS:
        found = section(data)
        if found is not None:
            name = section.__name__
            html = environment.get_template(f"{name}.html").render(found, data=data)
            parts.append({"id": name.replace("_", "-"), "title": found["title"], "html": Markup(html)})
    page = environment.get_template("page.html").render(data=data, lost=what_was_lost(data), sections=parts)
    # a lone surrogate (half of a character that a byte-level tokenizer cut) cannot be written as UTF-8
    return page.encode("utf-8", "replace").decode("utf-8")

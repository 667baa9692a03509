"""What `make demo` runs: the bundled teacher, compressed by QuantGPT at 8 and at 2 bits, compared in one table."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import abridged
from abridged.core.names import resolve
from abridged.models.load import load_any, load_dense, load_tokenizer
from abridged.report.text import number, signed_percent

OUTPUT = Path("demo")
PROMPT = " The river"
#: Short runs, so that the demo ends within ten minutes on two cores; docs/results.md has what longer ones reach.
STEPS = {"quantgpt-8-8-8": 60, "quantgpt-2-2-8": 450}


def main() -> None:
    began = time.monotonic()
    say = Console(stderr=True).print
    records = {}
    for recipe, steps in STEPS.items():
        say(f"[bold]compressing the bundled teacher by {recipe}[/bold] ({steps} steps)")
        overrides = [f"stages.0.steps={steps}", "stages.0.learning_rate=1e-3"]
        records[recipe] = abridged.compress(
            "bundled", recipe, "wikitext-2", OUTPUT / recipe, overrides=overrides, overwrite=True
        )
    rows = compare(records)
    table(rows)
    continuations()
    print(f"\nThe whole account: {OUTPUT / 'quantgpt-2-2-8' / 'report.html'}")
    print(f"The compressed model: {OUTPUT / 'quantgpt-2-2-8'} ({time.monotonic() - began:.0f} s in all)")
    (OUTPUT / "demo.json").write_text(json.dumps({"rows": rows, "seconds": time.monotonic() - began}, indent=1))


def compare(records: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Teacher, rounding without training, and the two students: a row of cells for each."""
    eight, two = records["quantgpt-8-8-8"], records["quantgpt-2-2-8"]
    teacher, dense = two["metrics"]["teacher"], two["size"]["dense_bytes"]
    rows = []
    for name, metrics, size in (
        ("teacher, FP32", teacher, dense),
        ("2-bit round to nearest, no training", two["metrics"]["untrained"], two["size"]["file_bytes"]),
        ("QuantGPT 8-8-8", eight["metrics"]["student"], eight["size"]["file_bytes"]),
        ("QuantGPT 2-2-8", two["metrics"]["student"], two["size"]["file_bytes"]),
    ):
        cells = [name]
        for key in ("perplexity", "word_perplexity"):
            loss = signed_percent(metrics[key] / teacher[key] - 1)
            cells += [number(metrics[key]), "" if metrics is teacher else loss]
        rows.append([*cells, f"{size / 2**20:.2f}", f"{dense / size:.1f}×"])
    return rows


HEADER = ("model", "perplexity", "loss", "per word", "loss", "MB on disk", "ratio")


def table(rows: list[list[str]]) -> None:
    """Print the comparison."""
    shown = Table(title="WikiText-2 test", title_justify="left")
    for i, column in enumerate(HEADER):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*row)
    Console(width=max(100, Console().width)).print(shown)


def continuations() -> None:
    """The same prompt, continued by the teacher and by the packed 2-bit student."""
    for name, model in (("teacher", load_dense("bundled")), ("2 bits", load_any(OUTPUT / "quantgpt-2-2-8"))):
        tokenizer = load_tokenizer("bundled")
        pieces = abridged.generate(model, tokenizer, PROMPT, max_new_tokens=60, temperature=0.8, top_k=40, seed=1)
        print(f"\n{name}:{PROMPT}{''.join(pieces)}")


if __name__ == "__main__":
    if not Path(resolve("bundled")).exists():
        sys.exit("the bundled teacher is missing from this installation")
    main()

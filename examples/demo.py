"""What `make demo` runs: the bundled teacher in 8 bits without training and in 2 bits with it, side by side."""

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
EIGHT, TWO = "ptq-8", "best-2-2-8"
#: Of the recipe's 1,500, so that the demo ends within a few minutes on two cores.
STEPS = 200
LONGER = "The recipe's own 1,500 steps lose about 6 % (docs/results.md)."


def main() -> None:
    began = time.monotonic()
    say = Console(stderr=True).print
    say(f"[bold]compressing the bundled teacher by {EIGHT}[/bold] (without training)")
    eight = abridged.compress("bundled", EIGHT, "wikitext-2", OUTPUT / EIGHT, overwrite=True)
    say(f"[bold]compressing the bundled teacher by {TWO}[/bold] ({STEPS} steps)")
    shorter = [f"stages.0.steps={STEPS}"]
    two = abridged.compress("bundled", TWO, "wikitext-2", OUTPUT / TWO, overrides=shorter, overwrite=True)
    rows = compare(eight, two)
    table(rows)
    print(LONGER)
    continuations()
    print(f"\nThe whole account: {OUTPUT / TWO / 'report.html'}")
    print(f"The compressed model: {OUTPUT / TWO} ({time.monotonic() - began:.0f} s in all)")
    (OUTPUT / "demo.json").write_text(json.dumps({"rows": rows, "seconds": time.monotonic() - began}, indent=1))


def compare(eight: dict[str, Any], two: dict[str, Any]) -> list[list[str]]:
    """Teacher, 8 bits, and 2 bits before and after training: a row of cells for each."""
    teacher, dense = two["metrics"]["teacher"], two["size"]["dense_bytes"]
    rows = []
    for name, metrics, size in (
        ("teacher, FP32", teacher, dense),
        ("8 bits, no training (ptq-8)", eight["metrics"]["student"], eight["size"]["file_bytes"]),
        ("2 bits, before training", two["metrics"]["untrained"], two["size"]["file_bytes"]),
        (f"2 bits, {STEPS} steps ({TWO})", two["metrics"]["student"], two["size"]["file_bytes"]),
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
    for name, model in (("teacher", load_dense("bundled")), ("2 bits", load_any(OUTPUT / TWO))):
        tokenizer = load_tokenizer("bundled")
        pieces = abridged.generate(model, tokenizer, PROMPT, max_new_tokens=60, temperature=0.8, top_k=40, seed=1)
        print(f"\n{name}:{PROMPT}{''.join(pieces)}")


if __name__ == "__main__":
    if not Path(resolve("bundled")).exists():
        sys.exit("the bundled teacher is missing from this installation")
    main()

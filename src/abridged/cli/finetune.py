"""`abridged finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.compress import run_job, show
from abridged.cli.output import print_pairs, print_table


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub name, a directory, `bundled`, or a .yaml file that describes a model to train from scratch.",
            show_default=False,
        ),
    ],
    data: options.Data,
    output: options.Output,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name (see `abridged recipes`) or YAML file; what its methods compress is stored so.",
            show_default="hard labels, nothing compressed",
        ),
    ] = None,
    columns: options.Columns = None,
    task: options.Task = None,
    overrides: options.Set = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = None,
    allow_uncompressed: options.AllowUncompressed = False,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold",
            help="Round adapters into the codes of their packed base: those that are trained, or those of MODEL.",
        ),
    ] = False,
    dtype: Annotated[str, typer.Option(help="What the weights are stored in: float32 or float16.")] = "float32",
    json: options.Json = False,
) -> None:
    """Train MODEL at full precision on your data, to be the teacher of a small one; or adapters beside a packed MODEL.

    A language model goes on with a text; an encoder-decoder learns from pairs, or to restore one text from noise.

    Examples: abridged finetune gpt2 --data my-text.txt --output teacher --set epochs=2;
    abridged finetune facebook/bart-base --data pairs.jsonl --columns document,summary --output teacher;
    abridged finetune small --recipe lora --data my-text.txt --output mine
    """
    run_job("finetune", show_teacher, **locals())


def show_teacher(record: dict[str, Any], output: Path) -> None:
    """Print what fine-tuning has come to."""
    validation = record.get("validation")
    if validation is None:
        show(record, output)
        return
    if "folded" in validation:
        show_folded(validation, output)
        return
    measured = {"validation, before": validation["before"], "validation": validation["after"], "test": record["test"]}
    shown = {
        what: ", ".join(f"{m.column} {m.value:.2f}" for m in found.measurements if m.title)
        for what, found in measured.items()
        if found
    }
    print_pairs({**shown, "written to": str(output)})


def show_folded(validation: dict[str, Any], output: Path) -> None:
    """Print what rounding adapters into the codes has lost: each number, and the share of what they had gained."""
    before, adapted, folded = (validation[key] for key in ("before", "after", "folded"))
    titles = [m.column for m in before.measurements if m.title]
    rows = []
    names = ("packed", before), ("packed, with adapters", adapted), ("packed, adapters folded in", folded)
    for name, measured in names:
        values = [f"{m.value:.2f}" for m in measured.measurements if m.title]
        gained, had = before.headline.rank - measured.headline.rank, before.headline.rank - adapted.headline.rank
        rows.append([name, *values, "" if measured is before or had <= 0 else f"{100 * gained / had:.0f} %"])
    print_table(["validation", *titles, "of the gain"], rows)
    typer.echo(f"written to {output}")

"""`abridged compress`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_table, quiet

if TYPE_CHECKING:
    from abridged.core.measurement import Measured, Measurement


def compress(
    model: options.Teacher,
    data: options.Data,
    output: options.Output,
    recipe: Annotated[
        str | None, typer.Option(help="Name (see `abridged recipes`) or YAML file.", show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Plan the bits of each matrix for a file of this size, such as 40MB (see `abridged plan`); the recipe "
            "says the rest.",
            show_default=False,
        ),
    ] = None,
    speed: options.PlannedSpeed = None,
    memory: options.PlannedMemory = None,
    prune: options.PlannedPruning = False,
    columns: options.Columns = None,
    task: options.Task = None,
    overrides: options.Set = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = None,
    allow_uncompressed: options.AllowUncompressed = False,
    teacher_cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep the teacher's answers in this folder and train without the teacher in memory.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Train a small model against MODEL by a recipe, or for a size, and store it in the few bits it needs.

    Prints perplexity on the data's test part (of pairs that of the targets, and ROUGE) and sizes on disk (MB of 2^20
    bytes; the teacher's in FP32).

    Examples: abridged compress gpt2 --recipe quantgpt-2-2-8 --data wikitext-2 --output small;
    abridged compress gpt2 --size 40MB --data wikitext-2 --output small;
    abridged compress my-bart --recipe quantbart-2-2-8 --data pairs.csv --columns document,summary --output small
    """
    if recipe is None and size is None:
        raise typer.BadParameter("give a --recipe, or a --size to plan one for", param_hint="--recipe")
    run_job("compress", show, **locals())


def run_job(
    kind: Literal["compress", "finetune"],
    show: Callable[[dict[str, Any], Path], None],
    json: bool,
    columns: str | None,
    overrides: list[str] | None,
    **given: Any,
) -> None:
    """Do what the options of a verb ask for, which are called as the fields of a `Job`; print its account."""
    from abridged.pipeline import Job, run

    job = Job(kind=kind, columns=options.columns_of(columns), overrides=overrides or (), **given)
    job.loaded_recipe()  # a misspelt key is reported before torch is imported
    options.check_there(given["model"], given["data"])
    quiet()
    record = run(job)
    if record and json:  # there is none in the other of several processes
        print_json(record)
    elif record:
        show(record, given["output"])


def show(record: dict[str, Any], output: Path) -> None:
    """Print what a compression has come to."""
    size, metrics = record["size"], record["metrics"]
    rows = [["teacher", metrics["teacher"], size["dense_bytes"]]]
    if "untrained" in metrics:
        rows.append(["same size, without training", metrics["untrained"], size["file_bytes"]])
    rows.append([record["recipe"]["name"], metrics["student"], size["file_bytes"]])
    titles = [title for m in metrics["teacher"].measurements if m.title for title in _titles(m)]
    print_table(
        ["model", *titles, "on disk", "ratio"],
        [[name, *_cells(metrics["teacher"], measured), *_size(size, count)] for name, measured, count in rows],
    )
    expected = record["recipe"].get("expected")
    if expected:
        from abridged.core.measurement import nats_lost

        lost = nats_lost(metrics["teacher"], metrics["student"])
        nats = "" if lost is None else f" and {lost:.4f}"
        typer.echo(
            f"planned {expected['file_bytes']:,} bytes and a loss of {expected['loss']:.4f} nats a token before "
            f"training; became {size['file_bytes']:,} bytes{nats}"
        )
    typer.echo(f"written to {output}; the account is in {output / 'report.html'}")


def _titles(measurement: "Measurement") -> list[str]:
    return [measurement.column, "loss"] if measurement.better == "lower" else [measurement.column]


def _cells(teacher: "Measured", measured: "Measured") -> list[str]:
    """What was measured; of what should be low, such as perplexity, also its rise in per cent of the teacher's."""
    from abridged.report.text import number, signed_percent

    cells = []
    for before, after in zip(teacher.measurements, measured.measurements, strict=True):
        if after.title:
            cells.append(number(after.value))
            if after.better == "lower":
                cells.append(signed_percent(after.loss(before.value)))
    return cells


def _size(size: dict[str, Any], count: int) -> list[str]:
    return [megabytes(count), f"{size['dense_bytes'] / count:.1f}x"]

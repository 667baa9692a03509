"""`abridged compress`."""

from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_table, quiet


def compress(
    model: options.Teacher,
    data: options.Data,
    output: options.Output,
    recipe: Annotated[str, typer.Option(help="Name (see `abridged recipes`) or YAML file.", show_default=False)],
    columns: options.Columns = None,
    task: options.Task = None,
    overrides: options.Set = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = None,
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
    """Train a small model against MODEL by a recipe, and store it in the few bits it needs.

    Prints perplexity on the data's test part (of pairs that of the targets, and ROUGE) and sizes on disk (MB of 2^20
    bytes; the teacher's in FP32).

    Examples: abridged compress gpt2 --recipe quantgpt-2-2-8 --data wikitext-2 --output small;
    abridged compress my-bart --recipe quantbart-2-2-8 --data pairs.csv --columns document,summary --output small
    """
    from abridged.recipe import Recipe

    described = Recipe.load(recipe, overrides or ())  # a misspelt key is reported before torch is imported
    quiet()
    from abridged.evaluation.scores import METRICS
    from abridged.pipeline import compress as run

    record = run(
        model,
        described,
        data,
        output,
        columns=options.columns_of(columns),
        task=task,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        teacher_cache=teacher_cache,
    )
    if not record:  # one of several processes, and not the one that writes
        return
    if json:
        print_json(record)
        return
    size, metrics = record["size"], record["metrics"]
    rows = [["teacher", metrics["teacher"], size["dense_bytes"]]]
    if "untrained" in metrics:
        rows.append(["same size, without training", metrics["untrained"], size["file_bytes"]])
    rows.append([record["recipe"]["name"], metrics["student"], size["file_bytes"]])
    rouge = ["ROUGE-1", "ROUGE-2", "ROUGE-L"] if "rouge" in metrics["teacher"] else []
    head = ["perplexity per token", "loss", "per word", "loss"] if "perplexity" in metrics["teacher"] else []
    scores = [name for name in METRICS if name in metrics["teacher"]]
    print_table(
        ["model", *head, *rouge, *scores, "on disk", "ratio"],
        [
            [
                name,
                *(_against(metrics["teacher"], measured) if head else ()),
                *_rouge(measured),
                *(f"{measured[score]:.2f}" for score in scores),
                *_size(size, count),
            ]
            for name, measured, count in rows
        ],
    )
    typer.echo(f"written to {output}; the account is in {output / 'report.html'}")


def _against(teacher: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """Perplexity and its loss in per cent of the teacher's, per token and per word."""
    keys = ("perplexity", "word_perplexity")
    pairs = [(f"{measured[key]:,.2f}", f"{100 * (measured[key] / teacher[key] - 1):+,.1f} %") for key in keys]
    return [cell for pair in pairs for cell in pair]


def _rouge(measured: dict[str, Any]) -> list[str]:
    found = measured.get("rouge", {})
    return [f"{found[key]:.2f}" for key in ("rouge1", "rouge2", "rougeL") if key in found]


def _size(size: dict[str, Any], count: int) -> list[str]:
    return [megabytes(count), f"{size['dense_bytes'] / count:.1f}x"]

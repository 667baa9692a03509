"""`abridged compress`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet


def compress(
    model: options.Teacher,
    data: options.Data,
    output: options.Output,
    recipe: Annotated[str, typer.Option(help="Name (see `abridged recipes`) or YAML file.", show_default=False)],
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

    Example: abridged compress gpt2 --recipe quantgpt-2-2-8 --data wikitext-2 --output small --set stages.0.steps=500
    """
    from abridged.recipe import Recipe

    described = Recipe.load(recipe, overrides or ())  # a misspelt key is reported before torch is imported
    quiet()
    from abridged.pipeline import compress as run

    record = run(
        model,
        described,
        data,
        output,
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        teacher_cache=teacher_cache,
    )
    if json:
        print_json(record)
    else:
        typer.echo(f"written to {output} (the account is in {output / 'report.html'})")

"""`abridged recipes`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json

app = typer.Typer(name="recipes", help="List the recipes, or show one.", invoke_without_command=True)


@app.callback()
def recipes(ctx: typer.Context, json: options.Json = False) -> None:
    """List the recipes that come along; `abridged recipes show NAME` prints one."""
    if ctx.invoked_subcommand is not None:
        return
    from abridged.core.shipped import headings

    rows = headings()
    if json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{width}}  {row['description']}")


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="A recipe's name or a YAML file.", show_default=False)] = None,
    overrides: options.Set = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key that a recipe may have: type, default, meaning.")
    ] = False,
) -> None:
    """Print a recipe as it is written; with --set, as it would run, every setting spelled out."""
    from abridged import recipe

    if name is None and not keys:
        raise typer.BadParameter("give a recipe's name, or --keys")
    if name is not None:
        described = recipe.Recipe.load(name, overrides or ())
        typer.echo((described.describe() if overrides else recipe.Recipe.text(name)).rstrip())
    if keys:
        for key in recipe.all_keys():
            typer.echo(f"{key.path}: {key.type} = {key.default}\n    {key.description}")

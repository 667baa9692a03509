"""`abridged trim`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet


def trim(
    model: options.Teacher,
    data: options.Data,
    output: options.Output,
    task: options.Task = None,
    columns: options.Columns = None,
    also: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="A further text whose tokens stay, such as wikitext-2: for words that DATA happens to lack.",
            show_default=False,
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(min=1, help="Tokens that TEXT, or else DATA, uses less often than this go, too.")
    ] = 1,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Leave the tokens out of a model that a text never uses; the output is an ordinary model, smaller.

    Example: abridged trim teacher --data reviews.tsv --output small-teacher
    """
    quiet()
    from abridged.vocabulary import trim as work

    record = work(
        model,
        data,
        output,
        columns=options.columns_of(columns),
        task=task,
        also=also,
        min_count=min_count,
        overwrite=overwrite,
    )
    if json:
        print_json(record)
    else:
        told = (f"{record[what]['before']:,} -> {record[what]['after']:,} {unit}" for what, unit in _TOLD.items())
        typer.echo(f"{', '.join(told)}, written to {output}")


_TOLD = {"vocabulary": "tokens", "parameters": "parameters"}

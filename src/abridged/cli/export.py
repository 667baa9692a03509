"""`abridged export`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, quiet
from abridged.exporters import FORMATS


def export(
    directory: options.Directory,
    output: options.Output,
    format: Annotated[str, typer.Option(help=f"What to write: {', '.join(FORMATS)}.")] = "dense",
    dtype: Annotated[str, typer.Option(help="What dense weights are stored in: float16 or float32.")] = "float16",
    json: options.Json = False,
) -> None:
    """Write a compressed model in a format that other tools read.

    Example: abridged export small --format dense --output plain
    """
    quiet()
    from abridged.exporters import export as run

    account = run(directory, output, format=format, dtype=dtype)
    if json:
        print_json(account)
    else:
        typer.echo(f"written to {output}: {megabytes(account['file_bytes'])}, {format}, {dtype}")

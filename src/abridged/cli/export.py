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

    run(directory, output, format=format, dtype=dtype)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if json:
        print_json({"format": format, "dtype": dtype, "output": str(output), "bytes": size})
    else:
        typer.echo(f"written to {output}: {megabytes(size)}, {format}, {dtype}")

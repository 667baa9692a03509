"""`abridged inspect`."""

from typing import Any

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_pairs


def inspect(directory: options.Directory, json: options.Json = False) -> None:
    """Say where the bytes of a compressed model go: the file, by part, and by module.

    Example: abridged inspect small
    """
    from abridged.checkpoint.inspect import inspect as run

    account = run(directory)
    if json:
        print_json(account)
        return
    print_pairs(
        {
            "on disk": megabytes(account["file_bytes"]),
            "in FP32": megabytes(account["dense_bytes"]),
            "ratio": f"{account['ratio']:.1f}x smaller",
            "bits per weight": f"{account['bits_per_weight']:.2f}",
        }
    )
    typer.echo()
    _table(account["parts"])
    typer.echo()
    _table(account["modules"])


def _table(rows: Any) -> None:
    raise NotImplementedError

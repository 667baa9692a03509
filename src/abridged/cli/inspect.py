"""`abridged inspect`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_pairs, print_table


def inspect(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model's directory, compressed or ordinary.", show_default=False)
    ],
    json: options.Json = False,
) -> None:
    """Say where a model's bytes are: in all, by part, and by module; and how each module is stored.

    Example: abridged inspect small
    """
    from abridged.checkpoint.inspect import inspect as run

    account = run(directory)
    if json:
        print_json(account)
        return
    print_pairs(
        {
            "on disk": f"{megabytes(account['file_bytes'])} ({account['file_bytes']:,} bytes)",
            "in FP32": megabytes(account["dense_bytes"]),
            "ratio": f"{account['ratio']:.1f} times smaller",
            "bits per weight": f"{account['bits_per_weight']:.2f}",
            "parameters": f"{account['parameters']:,}" + _left(account),
        }
    )
    typer.echo()
    parts = account["parts"].items()
    print_table(
        ["part", "parameters", "FP32", "on disk", "bits per weight"],
        [[name, f"{row['parameters']:,}", *_sizes(row)] for name, row in parts],
    )
    typer.echo()
    print_table(
        ["module", "shape", "FP32", "on disk", "bits per weight", "stored as"],
        [[row["name"], "x".join(map(str, row["shape"])), *_sizes(row), _stored(row)] for row in account["modules"]],
        left=(0, 5),
    )


def _left(account: dict[str, Any]) -> str:
    """How many numbers are left where matrices are factored or cut."""
    stored = account["stored_parameters"]
    return "" if stored == account["parameters"] else f", of which {stored:,} are left"


def _sizes(row: dict[str, Any]) -> Sequence[str]:
    """Size in FP32, on disk, and the bits that a weight comes to, scales and quantisers included."""
    bits = f"{8 * row['bytes'] / row['parameters']:.2f}" if row["parameters"] else "-"
    return megabytes(row["dense_bytes"]), megabytes(row["bytes"]), bits


def _stored(row: dict[str, Any]) -> str:
    """How a module is stored, in a few words."""
    words = [row["stored"]]
    if "scales" in row:
        words.append(
            f"{row['num_scales']} {row['scale_dtype']} scale{'s' * (row['num_scales'] > 1)} by {row['scales']}"
        )
    if row.get("error") is not None:
        words.append(f"{100 * row['error']:.0f} % off at the start")
    if activations := row.get("activations"):
        words.append(f"input in {activations['bits']} bits")
    if tied := row.get("tied"):
        words.append(f"also read by {', '.join(tied)}")
    return "; ".join(words)

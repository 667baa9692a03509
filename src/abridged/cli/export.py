"""`abridged export`."""

from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, quiet
from abridged.exporters import FORMATS


def export(
    directory: options.AnyModel,
    output: options.Output,
    format: Annotated[
        str,
        typer.Option(
            help="What to write. " + "; ".join(f"{name}: {f.description}" for name, f in FORMATS.items()) + "."
        ),
    ] = "dense",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of dense weights: float16, bfloat16, float32, or q8_0 (gguf); of scales in compressed-tensors.",
            show_default=False,
        ),
    ] = None,
    ternary: Annotated[
        str | None,
        typer.Option(
            help="gguf: TQ2_0 (the default, fast on CPUs), TQ1_0 (smaller) or Q2_0 (on GPUs too).", show_default=False
        ),
    ] = None,
    dense_fallback: Annotated[
        bool | None,
        typer.Option("--dense-fallback", help="gguf, web: matrices that no block fits as F16.", show_default=False),
    ] = None,
    uniform: Annotated[
        bool | None,
        typer.Option("--uniform", help="dense, gguf, web: pad pruned layers to one width.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a model, compressed or not, in a format that other tools read.

    Example: abridged export small --format gguf --output small.gguf
    """
    quiet()
    from abridged.exporters import export as run

    chosen = {"dtype": dtype, "ternary": ternary, "dense_fallback": dense_fallback, "uniform": uniform}
    account = run(directory, output, format=format, **{k: v for k, v in chosen.items() if v is not None})
    if json:
        print_json(account)
        return
    typer.echo(f"written to {output}: {megabytes(account['file_bytes'])}, {format}{_details(account)}")
    for sentence in account.get("notes", []):
        typer.echo(f"note: {sentence}")


def _details(account: dict[str, Any]) -> str:
    """What a format says of how it holds the tensors."""
    words = [f"{count} in {name}" for name, count in account.get("types", {}).items()]
    if "scale_error" in account:
        error = account["scale_error"]
        words.append(f"scales {'exact' if error == 0 else f'rounded to FP16 (by {error:.1e} of their value at most)'}")
    return ": " + ", ".join(words) if words else ""

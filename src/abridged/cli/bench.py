"""`abridged bench`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_table, quiet


def bench(
    directory: options.Directory,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are read at once.")] = 512,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are written one by one after them.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements, of which the median counts.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure a compressed model's speed and memory on this machine, beside the same weights in FP32.

    Example: abridged bench small
    """
    quiet()
    from abridged.evaluation.speed import bench as run

    result = run(directory, prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds)
    if json:
        print_json(result)
        return
    rows = [
        [
            {"packed": "packed", "dense": "dense, FP32"}[name],
            f"{row['prompt_tokens_per_second']:,.0f}",
            f"{row['decode_tokens_per_second']:,.1f}",
            megabytes(row["file_bytes"]),
            megabytes(row["in_use_bytes"]),
            f"{row['load_seconds']:.2f} s",
        ]
        for name, row in ((name, result[name]) for name in ("packed", "dense"))
    ]
    print_table(["model", "prompt tokens/s", "written tokens/s", "file", "memory in use", "load"], rows)
    hardware = result["hardware"]
    search = f" by search with {result['beams']} beams" if result["beams"] > 1 else ""
    typer.echo(
        f"{result['prompt_tokens']} tokens read, {result['new_tokens']} written{search}; "
        f"{hardware['threads']} threads, kernels {result['kernels']}, {hardware['cpu']}"
    )

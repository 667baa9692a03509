"""`abridged bench`."""

from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import fast_steps, megabytes, print_json, print_table, quiet


def bench(
    directory: options.Directory,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens that are read at once [default: 512; 128 of texts to label]", show_default=False
        ),
    ] = None,
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
    labels = "texts_per_second" in result["packed"]
    rows = [
        [
            {"packed": "packed", "dense": "dense, FP32"}[name],
            *(_texts_per_second(row) if labels else _tokens_per_second(row)),
            megabytes(row["file_bytes"]),
            megabytes(row["in_use_bytes"]),
            f"{row['load_seconds']:.2f} s",
        ]
        for name, row in ((name, result[name]) for name in ("packed", "dense"))
    ]
    batches = [f"texts/s, {size} at once" for size in result["packed"].get("texts_per_second", ())]
    speeds = batches if labels else ["prompt tokens/s", "written tokens/s"]
    print_table(["model", *speeds, "file", "memory in use", "load"], rows)
    hardware = result["hardware"]
    search = f" by search with {result['beams']} beams" if result.get("beams", 1) > 1 else ""
    lengths = "tokens a text" if labels else f"tokens read, {result['new_tokens']} written{search}"
    typer.echo(
        f"{result['prompt_tokens']} {lengths}; {hardware['threads']} threads, kernels {result['kernels']}, "
        f"{hardware['cpu']}"
    )
    if "fast_steps" in result:
        typer.echo(f"fast steps: {fast_steps(result)}")


def _tokens_per_second(row: dict[str, Any]) -> list[str]:
    return [f"{row['prompt_tokens_per_second']:,.0f}", f"{row['decode_tokens_per_second']:,.1f}"]


def _texts_per_second(row: dict[str, Any]) -> list[str]:
    return [f"{speed:,.1f}" for speed in row["texts_per_second"].values()]

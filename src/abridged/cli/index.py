"""`abridged index`."""

from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json


def index(
    model: options.IndexModel,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of videos, or texts.", show_default=False)],
    file: options.IndexFile = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How vectors are stored: float16, int8 (half of it), or binary (bits in memory, int8 on the disk).",
            show_default="float16",
        ),
    ] = None,
    dimensions: options.Dimensions = None,
    json: options.Json = False,
) -> None:
    """Make an index of a folder, or bring it up to date: only what is new or changed is looked into.

    A model of pictures and texts indexes the videos, one of sentences the texts (.txt, .md, .jsonl, .csv, .tsv).
    Interrupted at any moment, the same command goes on. A file that cannot be read is skipped, with its reason.

    Examples: abridged index openai/clip-vit-base-patch32 ~/Videos; abridged index small notes/ --vectors int8
    """
    from abridged.index.build import build

    found = build(model, folder, file, vectors, dimensions)
    options.note_dimensions(model, dimensions)
    if json:
        print_json(found.as_dict())
        return
    for name, reason in found.skipped.items():
        typer.echo(f"skipped {name}: {reason}", err=True)
    parts = {"looked into": found.added, "unchanged": found.unchanged, "known by another name": found.known,
             "gone": found.gone, "skipped": len(found.skipped)}  # fmt: skip
    told = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count) or "none"
    amount = f"{found.amount:,.0f}" if found.reads == "texts" else f"{found.amount:,.2f}"
    more = f", {amount} {found.unit}" if found.amount else ""
    typer.echo(f"{found.files:,} {found.reads}: {told}{more}, in {found.seconds:.1f} s -> {found.index}")

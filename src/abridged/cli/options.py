"""Arguments and options that several verbs share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Teacher = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A hub name (gpt2), a Hugging Face directory, or `bundled`, the small teacher that comes along.",
        show_default=False,
    ),
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A compressed directory, any Hugging Face model by directory or hub name, or `bundled`.",
        show_default=False,
    ),
]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A directory that `abridged compress` wrote.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option(
        help="wikitext-2 (bundled), ptb or wikitext-103 (from the hub), a .txt, .jsonl or .parquet file, a folder of "
        "them, or the name of a `datasets` dataset.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option(metavar="DIR", help="The directory to write.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting; may be given several times.", show_default=False
    ),
]

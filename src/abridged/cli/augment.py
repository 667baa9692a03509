"""`abridged augment`."""

from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet


def augment(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Whose embedding, or masked head, proposes words: a hub name or a directory.",
            show_default=False,
        ),
    ],
    data: options.Data,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The .tsv file to write.", show_default=False)],
    task: options.Task = None,
    columns: options.Columns = None,
    variants: Annotated[int, typer.Option(min=1, help="Further texts from each.")] = 5,
    by: Annotated[str, typer.Option(help="neighbours: nearest embeddings; masks: a masked head.")] = "neighbours",
    candidates: Annotated[int, typer.Option(min=1, help="Proposals for a word, of which one is drawn.")] = 15,
    probability: Annotated[float, typer.Option(min=0.01, max=1, help="Of a word to be replaced.")] = 0.4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
    seed: options.Seed = None,
    json: options.Json = False,
) -> None:
    """Make more training texts from labelled ones by replacing words; the rows that there are come along.

    Example: abridged augment bert-base-uncased --data reviews.tsv --by masks --output more-reviews.tsv
    """
    from abridged.errors import AbridgedError

    if by not in ("neighbours", "masks"):
        raise typer.BadParameter(f"{by!r} is none: there are neighbours and masks", param_hint="--by")
    if output.exists() and not overwrite:
        raise AbridgedError(f"{output} exists already: choose another output, or add --overwrite")
    quiet()
    from abridged.data.augment import augmented, write_rows
    from abridged.data.labelled import load_labelled
    from abridged.training.settings import Augmentation

    settings = Augmentation(variants=variants, by=by, candidates=candidates, probability=probability)
    rows = load_labelled(data, task, options.columns_of(columns)).train
    grown = augmented(rows, settings, model, seed or 0)
    write_rows(grown, output)
    if json:
        print_json({"rows": len(rows), "augmented": len(grown), "output": str(output)})
    else:
        typer.echo(f"{len(grown):,} texts from {len(rows):,} written to {output}")

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
    from abridged.core.outputs import check_output

    if by not in ("neighbours", "masks"):
        raise typer.BadParameter(f"{by!r} is none: there are neighbours and masks", param_hint="--by")
    check_output(output, directory=False, overwrite=overwrite, inputs=(model, data))
    quiet()
    from abridged.core.settings import Augmentation
    from abridged.data.opening import open_data
    from abridged.tasks.augment import augmented, write_rows

    settings = Augmentation(variants=variants, by=by, candidates=candidates, probability=probability)
    labelled = open_data(data, options.columns_of(columns), task).as_labelled()
    labelled.announce()
    rows = labelled.train
    grown = augmented(rows, settings, model, seed or 0)
    write_rows(grown, output)
    if json:
        print_json({"rows": len(rows), "augmented": len(grown), "output": str(output)})
    else:
        typer.echo(f"{len(grown):,} texts from {len(rows):,} written to {output}")

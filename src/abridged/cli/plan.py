"""`abridged plan`."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import megabytes, print_json, print_table, quiet

if TYPE_CHECKING:
    from abridged.planning.plan import Plan, Point


class Way(str, Enum):
    """How sensitivity is found, from dear to cheap."""

    measured = "measured"
    interpolated = "interpolated"
    fisher = "fisher"


def plan(
    model: options.Teacher,
    size: options.Size,
    data: options.Data,
    recipe: Annotated[
        str | None, typer.Option(help="The recipe that says all but the bits.", show_default="best-2-2-8")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The recipe to write; a picture beside it.")] = Path(
        "plan.yaml"
    ),
    way: Annotated[
        Way,
        typer.Option(
            help="How sensitivity is found: every form of every matrix measured, a few of each, or none (gradients)."
        ),
    ] = Way.interpolated,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the data that are read for it.", show_default="2,048")
    ] = None,
    speed: options.PlannedSpeed = None,
    memory: options.PlannedMemory = None,
    prune: options.PlannedPruning = False,
    columns: options.Columns = None,
    task: options.Task = None,
    overrides: options.Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the recipe that is there.")] = False,
    json: options.Json = False,
) -> None:
    """Choose the bits of each matrix for a size, before any training.

    Prints what other sizes would lose, and writes a recipe, which `abridged compress --recipe FILE` takes, and a
    picture. The size is that of the weights' file (MB of 2^20 bytes); config and tokenizer stand beside it.

    Example: abridged plan gpt2 --size 40MB --data wikitext-2
    """
    from abridged.core.outputs import check_output
    from abridged.recipe import PLANNED, Recipe

    Recipe.load(recipe or PLANNED, overrides or ())  # a misspelt key is reported before torch is imported
    options.check_there(model, data)
    file, picture = (
        check_output(path, directory=False, overwrite=overwrite, inputs=(model, data, recipe))
        for path in (output, output.with_suffix(".svg"))
    )
    quiet()
    from abridged.core.atomic import write_atomically
    from abridged.pipeline import plan as make
    from abridged.report.figure import standalone
    from abridged.report.plots import front

    found = make(
        model,
        size,
        data,
        recipe=recipe or PLANNED,
        overrides=overrides or (),
        way=way.value,
        tokens=tokens,
        speed=speed,
        memory=memory,
        prune=prune,
        columns=options.columns_of(columns),
        task=task,
    )
    write_atomically(file, found.recipe.compact())
    expected = found.recipe.expected
    assert expected is not None
    write_atomically(picture, standalone(front(expected.front, (expected.file_bytes, expected.loss))))
    if json:
        print_json(as_json(found))
    else:
        show(found)
        typer.echo(f"written to {output}, and a picture to {output.with_suffix('.svg')}")


def show(found: "Plan") -> None:
    """Print the front, the line that was asked for marked, and what each matrix gets."""
    from math import exp

    from abridged.core.progress import duration
    from abridged.planning.plan import groups

    print_table(
        ["size", "ratio", "pruned to", "bits", "embedding", "loss", "perplexity", *_here(found.point), ""],
        [
            [
                megabytes(point.file_bytes),
                f"{found.dense_bytes / point.file_bytes:.1f}x",
                "-" if point.share == 1 else f"{point.share:.0%}",
                f"{point.bits(found.matrices, embedding=False):.2f}",
                f"{point.bits(found.matrices, embedding=True):.2f}",
                f"{point.loss:.4f}",
                f"×{exp(min(point.loss, 99)):,.{2 if point.loss < 5 else 0}f}",
                *_here(point).values(),
                "<- planned" if point == found.point else "",
            ]
            for point in found.front
        ],
        left=(0, 7 + len(_here(found.point))),
    )
    typer.echo(
        f"loss: divergence in nats a token before any training, {found.way} on {found.tokens:,} tokens; bits: of a "
        "weight, scales aside"
    )
    if _here(found.point):
        typer.echo("tokens/s, memory: of one text on this machine, from its kernels as measured; see `abridged bench`")
    if found.seconds:
        typer.echo(f"time: about {duration(found.seconds)} of training on this machine")
    typer.echo()
    for form, names in groups(found.matrices, found.point.assignment).items():
        typer.echo(f"{form.words}: {', '.join(names)}")


def _here(point: "Point") -> dict[str, str]:
    """What a plan takes on this machine, where that was measured, by the heads of a table."""
    speed, memory = point.tokens_per_second, point.memory
    return ({} if speed is None else {"tokens/s": f"{speed:,.1f}"}) | (
        {} if memory is None else {"memory": megabytes(memory)}
    )


def as_json(found: "Plan") -> dict[str, Any]:
    """A plan for a program."""

    def told(point: Any) -> dict[str, Any]:
        bits = {name: form.bits for name, form in point.assignment.items()}
        here = {"tokens_per_second": point.tokens_per_second, "memory": point.memory}
        return {"file_bytes": point.file_bytes, "loss": point.loss, "share": point.share, "bits": bits, **here}

    return {
        "size": found.size,
        "dense_bytes": found.dense_bytes,
        "way": found.way,
        "tokens": found.tokens,
        "training_seconds": found.seconds,
        "planned": told(found.point),
        "front": [told(point) for point in found.front],
        "recipe": found.recipe.model_dump(mode="json"),
    }

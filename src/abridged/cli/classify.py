"""`abridged classify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet
from abridged.core.errors import AbridgedError
from abridged.core.quick_start import quick_start
from abridged.core.text import printable


def classify(
    model: options.AnyModel,
    text: Annotated[str | None, typer.Argument(help="The text to label.", show_default=False)] = None,
    second: Annotated[
        str | None, typer.Argument(help="The second text, where the model labels pairs.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Label each row of a file: text, or two texts with a tab between.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Words for each mask, where the model fills masks.")] = 5,
    json: options.Json = False,
) -> None:
    """Label a text, or each line of a file; give a score where the model gives scores.

    A model that labels tokens finds entities and where they are in the text; one that fills masks says which words
    could stand for each [MASK]. An empty line then ends what is said of each line of a file.

    Examples: abridged classify small "a charming film"; abridged classify small --file reviews.txt;
    abridged classify small-ner "Marie Curie was born in Warsaw"; abridged classify small-mlm "The [MASK] is long."
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text or --file")
    from abridged.data.labelled import read_texts

    firsts, seconds = ([text or ""], None if second is None else [second]) if file is None else read_texts(file)
    quick_start()
    quiet()
    from abridged.families.kinds import fills_masks, labels_tokens
    from abridged.models.load import load_model

    loaded, tokenizer = load_model(model)
    if seconds is not None and (labels_tokens(loaded) or fills_masks(loaded)):
        raise AbridgedError(f"a {type(loaded).__name__} reads one text at a time, not two")
    if labels_tokens(loaded):
        found, lines = _entities(loaded, tokenizer, firsts)
    elif fills_masks(loaded):
        found, lines = _masks(loaded, tokenizer, firsts, top)
    else:
        found, lines = _labels(loaded, tokenizer, firsts, seconds)
    if json:
        print_json(found if file is not None else found[0])
        return
    for some in lines:
        for line in some:
            typer.echo(printable(line))
        if file is not None and (labels_tokens(loaded) or fills_masks(loaded)):
            typer.echo("")


def _labels(
    model: Any, tokenizer: Any, firsts: Sequence[str], seconds: Sequence[str] | None
) -> tuple[list[Any], list[list[str]]]:
    from abridged.tasks.classification import classify as run

    found = run(model, tokenizer, firsts, seconds)
    best = [max(row, key=lambda label: row[label]) for row in found]
    lines = [f"{row[b]:.3f}" if "score" in row else f"{b}\t{row[b]:.3f}" for row, b in zip(found, best, strict=True)]
    return found, [[line] for line in lines]


def _entities(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[list[Any], list[list[str]]]:
    from abridged.tasks.token_classification import find_entities

    found, cut = find_entities(model, tokenizer, texts)
    if cut:
        typer.echo(f"note: {cut:,} of {len(texts):,} texts are longer than the model reads and are cut", err=True)
    lines = [
        [f"{one['text']}\t{one['label']}\t{one['probability']:.3f}\t{one['start']}-{one['end']}" for one in some]
        for some in found
    ]
    return found, lines


def _masks(model: Any, tokenizer: Any, texts: Sequence[str], top: int) -> tuple[list[Any], list[list[str]]]:
    from abridged.tasks.masked_language_modeling import fill_masks

    found = fill_masks(model, tokenizer, texts, top)
    lines = [[f"{one['word']}\t{one['probability']:.3f}" for mask in masks for one in mask] for masks in found]
    return found, lines

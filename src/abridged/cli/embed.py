"""`abridged embed`."""

from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet
from abridged.core.quick_start import quick_start


def embed(
    model: options.AnyModel,
    text: Annotated[str | None, typer.Argument(help="The text to make a vector of.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Texts: one in each line of a .txt file, or in a column of .jsonl, .csv, .tsv, .parquet."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the texts.", show_default="sentence, text, or the only one")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the vectors to this .npy file, one a text.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Put the prompt of that name before each, where the model has some."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are read at once.")] = 32,
    json: options.Json = False,
) -> None:
    """Make a vector of a text, or of each in a file: of a line of numbers, or with --json an object a line.

    Examples: abridged embed small "how do I reset it"; abridged embed small --file sentences.txt --output vectors.npy
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text or --file")
    if output is not None and file is None:
        raise typer.BadParameter("is for the texts of a --file", param_hint="--output")
    if output is not None and output.suffix != ".npy":
        raise typer.BadParameter("must end in .npy", param_hint="--output")
    from abridged.data.text_files import TextFile

    texts = None if file is None else TextFile(file, column)  # what is wrong with it is said before a model is loaded
    quick_start()
    quiet()
    from abridged.core.progress import counter
    from abridged.evaluation.sentences import SentenceEncoder, note_cut, write_vectors
    from abridged.models.load import load_model

    encoder = SentenceEncoder(*load_model(model))
    for note in [encoder.note] if encoder.note else []:
        typer.echo(note, err=True)
    if texts is None:
        found = encoder.encode([text or ""], prompt, batch_size)
        vector = found.vectors[0].tolist()
        if json:
            print_json({"vector": vector, "cut": bool(found.cut)})
        else:
            typer.echo(_line(vector))
        note_cut(found.cut, 1, encoder.limit)
        return
    if output is not None:
        with counter("texts") as show:
            told = write_vectors(encoder, texts, output, prompt, batch_size, show)
        if json:
            print_json(told)
        else:
            typer.echo(
                f"{told['texts']:,} vectors of {told['width']:,} numbers written to {output}, at "
                f"{told['texts_per_second']:,.0f} texts/s"
            )
        return
    from json import dumps

    cut = 0
    for some in texts.chunks():
        found = encoder.encode(some, prompt, batch_size)
        cut += found.cut
        for one, vector in zip(some, found.vectors.tolist(), strict=True):
            typer.echo(dumps({"text": one, "vector": vector}, ensure_ascii=False) if json else _line(vector))
    note_cut(cut, len(texts), encoder.limit)


def _line(vector: list[float]) -> str:
    return " ".join(f"{value:.6g}" for value in vector)

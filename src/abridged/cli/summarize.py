"""`abridged summarize`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet
from abridged.core.quick_start import quick_start


def summarize(
    model: options.AnyModel,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A text file, which is one document; a .jsonl, .csv, .tsv or .parquet file, with a document a row; "
            "or - for standard input.",
            show_default=False,
        ),
    ],
    column: Annotated[
        str | None,
        typer.Option(help="The rows' column of documents.", show_default="the first known, such as document or text"),
    ] = None,
    beams: options.Beams = None,
    max_new_tokens: options.SummaryTokens = None,
    batch_size: options.BatchSize = 16,
    json: options.Json = False,
) -> None:
    """Write a summary of each document, one a line; what was cut, and the speed, go to standard error.

    Example: abridged summarize small-bart report.txt
    """
    from abridged.core.errors import AbridgedError
    from abridged.data.pairs import read_documents

    try:
        documents = [sys.stdin.read()] if file == "-" else read_documents(Path(file), column)
    except UnicodeDecodeError:
        raise AbridgedError("standard input is not UTF-8 text") from None
    quick_start()
    quiet()
    from abridged.core.progress import counter
    from abridged.evaluation.summaries import SearchSettings
    from abridged.evaluation.summaries import summarize as run
    from abridged.models.load import load_model

    settings = SearchSettings(beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size)
    loaded, tokenizer = load_model(model)
    room = settings.arguments(loaded)["max_new_tokens"]
    if max_new_tokens is not None and max_new_tokens > room:
        typer.echo(f"the model's positions end after {room} tokens: no summary is longer", err=True)
    with counter("summaries") as show:
        written = run(loaded, tokenizer, documents, settings, lambda done: show(done, len(documents)))
    if json:
        print_json({"summaries": written.texts, "cut": written.cut, "tokens": written.tokens})
    else:
        for text in written.texts:
            typer.echo(" ".join(text.split()))
    if empty := sum(not document.strip() for document in documents):
        typer.echo(f"{empty} of {len(documents)} documents are empty, and so are their summaries", err=True)
    if written.cut:
        typer.echo(f"{written.cut} of {len(documents)} documents are longer than the model reads: cut", err=True)
    if written.seconds:
        speed = written.tokens / written.seconds
        typer.echo(f"{written.tokens} tokens in {written.seconds:.2f} s, {speed:.1f} tokens/s", err=True)

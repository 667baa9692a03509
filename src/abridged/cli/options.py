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
        help="A compressed directory, any Hugging Face model by directory or hub name, a .gguf file, or `bundled`.",
        show_default=False,
    ),
]
IndexModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of pictures and texts, such as CLIP, or of sentences: a directory, or a hub name.",
        show_default=False,
    ),
]
IndexFile = Annotated[
    Path | None,
    typer.Option(
        "--index", metavar="FILE", help="The index.", show_default="in FOLDER, one of videos and one of texts"
    ),
]
Dimensions = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Keep the first N numbers of each vector, given length 1 again.", show_default="all"
    ),
]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A directory that `abridged compress` wrote.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option(
        help="wikitext-2 (bundled), ptb or wikitext-103 (from the hub), a .txt, .jsonl or .parquet file, a folder of "
        "them, or the name of a `datasets` dataset; for BART also pairs of texts (.jsonl, .csv, .tsv, .parquet).",
        show_default=False,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Columns of rows: SOURCE,TARGET of pairs; TEXT,LABEL or TEXT,TEXT,LABEL of labelled texts; TEXT of "
        "sentences; WORDS,TAGS, by their numbers from 0 in a CoNLL file.",
        show_default="the first known, such as document,summary",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="A task of GLUE, such as sst2, or squad, whose files are in the folder --data; or for data of your own: "
        "labels, texts and labels and a model that has written texts so far; tokens, words and their tags; mlm, a text "
        "and a model that fills masks; retrieval (evaluate), queries and the passages that answer them.",
        show_default=False,
    ),
]
Beams = Annotated[
    int | None, typer.Option(min=1, help="Hypotheses kept in beam search.", show_default="the model's own, or 4")
]
SummaryTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a summary at most.", show_default="the model's own, or 64")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Documents that are read at once.")]
Output = Annotated[Path, typer.Option(metavar="DIR", help="The directory to write.", show_default=False)]
Size = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Of the weights' file, such as 40MB (of 2^20 bytes).", show_default=False),
]
PlannedSpeed = Annotated[
    str | None,
    typer.Option(
        metavar="SPEED",
        help="Tokens a second that a plan must write here, one after the other, or such as 2x, of the original's.",
        show_default=False,
    ),
]
PlannedMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory that a planned model may take here, such as 100MB.", show_default=False),
]
PlannedPruning = Annotated[
    bool,
    typer.Option(
        "--prune", help="For a plan, try also to prune heads and inner units first; takes as long for each share."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output directory, if abridged wrote it.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")]
AllowUncompressed = Annotated[
    bool,
    typer.Option("--allow-uncompressed", help="Go on where more than 5 % of the weights would stay as they are."),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting; may be given several times.", show_default=False
    ),
]


def check_there(model: str, data: str) -> None:
    """Refuse a model or data that can only be paths and are not there, before libraries are imported for seconds."""
    from abridged.core.names import pretrained
    from abridged.data.text import check_there

    pretrained(model)
    check_there(data)


def note_dimensions(model: str, dimensions: int | None) -> None:
    """Say on standard error where vectors are cut that may not be meant to be."""
    if dimensions is None:
        return
    from abridged.models.sentence import trained_for_cuts

    if not trained_for_cuts(model):
        typer.echo(
            "note: the model's files do not say that it was trained for vectors that are cut (Matryoshka): they may "
            "find much less",
            err=True,
        )


def columns_of(text: str | None) -> tuple[str, ...] | None:
    """The value of `--columns`, name by name."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if len(names) > 3 or not all(names):
        raise typer.BadParameter("give one, two or three names with commas between them", param_hint="--columns")
    return names

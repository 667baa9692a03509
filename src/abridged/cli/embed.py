"""`abridged embed`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet
from abridged.core.quick_start import quick_start

_FOR_SHARDS = {"keep": None, "split": None, "shard_rows": None, "workers": None, "resume": False,
               "overwrite": False}  # fmt: skip


def embed(
    model: options.AnyModel,
    text: Annotated[str | None, typer.Argument(help="The text to make a vector of.", show_default=False)] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            "--data",
            metavar="DATA",
            help="Texts: one in each line of a .txt file, or in a column of .jsonl, .csv, .tsv, .parquet; for a "
            "directory of vectors also a folder of such files, or the name of a `datasets` dataset.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the texts.", show_default="sentence, text, or the only one")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the vectors to this .npy file, one a text; or, under any other name, to Parquet files in this "
            "directory, of data of any size.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Put the prompt of that name before each, where the model has some."),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="float32, float16, int8, or binary: bits, eight in a number.",
            show_default="float32; in a directory float16",
        ),
    ] = None,
    dimensions: options.Dimensions = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are read at once.")] = 32,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Directory: columns to keep beside the vectors; a .txt file has one, text.",
            show_default="the number of the row only",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Directory: the part of a dataset to take.", show_default="all of them")
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="Directory: texts of each file.", show_default="8192")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Directory: processes, each on one core.", show_default="one a core, as memory allows"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Directory: go on with an interrupted run.")] = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Make a vector of a text, or of each in a file: of a line of numbers, or with --json an object a line.

    Examples: abridged embed small "how do I reset it"; abridged embed small --file sentences.txt --output vectors.npy
    --vectors int8; abridged embed small --data texts/ --keep id --output vectors --workers 8
    """
    shards = {name: value for name, value in locals().items() if name in _FOR_SHARDS}
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text or --file")
    if output is not None and file is None:
        raise typer.BadParameter("is for the texts of a --file", param_hint="--output")
    from abridged.evaluation.vectors import KINDS

    if vectors not in (None, "float32", *KINDS):
        raise typer.BadParameter(f"{vectors!r} is none: there are float32, {', '.join(KINDS)}", param_hint="--vectors")
    if output is None or output.suffix == ".npy":
        foreign = next((name for name, value in shards.items() if value != _FOR_SHARDS[name]), None)
        if foreign is not None:
            where = f"--{foreign.replace('_', '-')}"
            raise typer.BadParameter("is for an --output that is a directory", param_hint=where)
    else:
        assert file is not None
        options.note_dimensions(model, dimensions)
        how = {"vectors": vectors or "float16", "dimensions": dimensions, "batch_size": batch_size}
        _to_directory(model, file, output, json, {"column": column, "prompt": prompt, **how, **shards})
        return
    from abridged.data.text_files import TextFile

    # what is wrong with it is said before a model is loaded
    texts = None if file is None else TextFile(Path(file), column)
    quick_start()
    quiet()
    from abridged.core.progress import counter
    from abridged.evaluation.sentences import SentenceEncoder, VectorSettings, note_cut, write_vectors
    from abridged.models.load import load_model

    settings = VectorSettings(vectors or "float32", dimensions, batch_size)
    encoder = SentenceEncoder(*load_model(model))
    options.note_dimensions(model, dimensions)
    for note in [encoder.note] if encoder.note else []:
        typer.echo(note, err=True)
    if texts is None:
        found = encoder.encode([text or ""], prompt, batch_size)
        vector = settings.stored(found.vectors)[0].tolist()
        if json:
            print_json({"vector": vector, "cut": bool(found.cut)})
        else:
            typer.echo(_line(vector))
        note_cut(found.cut, 1, encoder.limit)
        return
    if output is not None:
        with counter("texts") as show:
            told = write_vectors(encoder, texts, output, prompt, settings, show)
        if json:
            print_json(told)
        else:
            typer.echo(
                f"{told['texts']:,} vectors of {told['width']:,} numbers written to {output}, at "
                f"{told['texts_per_second']:,.0f} texts/s"
            )
            if "recall" in told:
                again = f", {100 * told['rescored']:.1f} % where 40 are scored again" if "rescored" in told else ""
                typer.echo(f"of the ten nearest in FP32, {100 * told['recall']:.1f} % are found{again}")
        return
    from json import dumps

    cut = 0
    for some in texts.chunks():
        found = encoder.encode(some, prompt, batch_size)
        cut += found.cut
        for one, vector in zip(some, settings.stored(found.vectors).tolist(), strict=True):
            typer.echo(dumps({"text": one, "vector": vector}, ensure_ascii=False) if json else _line(vector))
    note_cut(cut, len(texts), encoder.limit)


def _to_directory(model: str, data: str, output: Path, json: bool, given: dict[str, Any]) -> None:
    options.check_there(model, data)
    quiet()
    from abridged.embedding import embed_data

    given = {name: value for name, value in given.items() if value is not None}
    given["keep"] = tuple(name.strip() for name in given.get("keep", "").split(",") if name.strip())
    told = embed_data(model, data, output, **given)
    if json:
        print_json(told)
        return
    typer.echo(
        f"{told['texts']:,} vectors of {told['width']:,} numbers written to {output}, {told['shards']:,} files, at "
        f"{told['texts_per_second']:,.0f} texts/s"
    )


def _line(vector: list[float]) -> str:
    return " ".join(f"{value:.6g}" for value in vector)

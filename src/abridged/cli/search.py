"""`abridged search`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_table, quiet


def search(
    model: options.VideoModel,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that `abridged index` went through.", show_default=False)
    ],
    text: Annotated[str | None, typer.Argument(help="What is to be seen.", show_default=False)] = None,
    then: Annotated[
        list[str] | None,
        typer.Option("--then", metavar="TEXT", help="What is to be seen after it; may be given several times."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Search by a picture.", show_default=False)] = None,
    clip: Annotated[Path | None, typer.Option(help="Search by a clip.", show_default=False)] = None,
    under: Annotated[
        str | None, typer.Option(metavar="DIR", help="Only below this folder in FOLDER.", show_default=False)
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only files changed since.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Moments at most.")] = 10,
    rerank: Annotated[
        int, typer.Option(min=0, help="Hits that are looked at again together with the text, if MODEL can; 0 = none.")
    ] = 32,
    cut: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the moments as clips into a folder.", show_default=False)
    ] = None,
    file: options.IndexFile = None,
    serve: Annotated[bool, typer.Option("--serve", help="A page on this machine, instead of one search.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page.")] = 8765,
    json: options.Json = False,
) -> None:
    """Find moments in indexed videos: file, from and to, and how well they fit.

    Examples: abridged search small ~/Videos "a dog jumps into the water" --cut hits; abridged search small ~/Videos
    "the gate opens" --then "a car drives in"; abridged search small ~/Videos --serve
    """
    if sum((text is not None, image is not None, clip is not None, serve)) != 1:
        raise typer.BadParameter("give one of a text, --image, --clip and --serve")
    if then and text is None:
        raise typer.BadParameter("--then goes with a text")
    quiet()
    from abridged.index.search import Searcher, Where

    searcher = Searcher(model, folder, file)
    if serve:
        from abridged.index.serve import serve as run

        server = run(searcher, port, rerank)
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/ (end it with Ctrl+C)")
        server.serve_forever()
    where = Where(under, since.timestamp() if since else None)
    if text is not None:
        hits = searcher.text(text, then or (), limit, where, rerank)
    else:
        hits = searcher.picture(image, limit, where) if image else searcher.clip(clip or Path(), limit, where)
    told = [hit.as_dict() for hit in hits]
    if cut is not None:
        from abridged.index.cut import cut_all

        for one, written in zip(told, cut_all(searcher.folder, hits, cut), strict=True):
            one["clip"] = str(written)
    if json:
        print_json(told)
        return
    rows = [[hit.path, clock(hit.start), clock(hit.end), f"{hit.score:.3f}"] for hit in hits]
    if rows:
        print_table(["file", "from", "to", "score"], rows)
    else:
        typer.echo("nothing is found")


def clock(seconds: float) -> str:
    """1:02:03.4, or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, left = divmod(minutes, 60)
    head = f"{hours}:{left:02d}" if hours else str(left)
    return f"{head}:{rest / 10:04.1f}"

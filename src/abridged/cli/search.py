"""`abridged search`."""

from datetime import datetime
from pathlib import Path
from textwrap import indent
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_table, quiet
from abridged.core.text import printable


def search(
    model: options.IndexModel,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that `abridged index` went through.", show_default=False)
    ],
    text: Annotated[str | None, typer.Argument(help="What you are looking for.", show_default=False)] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="MODEL", help="Search the index that this model made of FOLDER, too."),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(
            "--then", metavar="TEXT", help="What is to be seen after it, in a video; may be given several times."
        ),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Search by a picture.", show_default=False)] = None,
    clip: Annotated[Path | None, typer.Option(help="Search by a clip.", show_default=False)] = None,
    under: Annotated[
        str | None, typer.Option(metavar="DIR", help="Only below this folder in FOLDER.", show_default=False)
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only files changed since.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Hits at most.")] = 10,
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
    """Find moments in indexed videos, or passages in texts: the file, from and to, and how well it fits.

    Examples: abridged search small ~/Videos "a dog jumps into the water" --cut hits; abridged search small ~/Videos
    "the gate opens" --then "a car drives in"; abridged search small notes/ "how do I reset it"; abridged search small
    notes/ --serve
    """
    if sum((text is not None, image is not None, clip is not None, serve)) != 1:
        raise typer.BadParameter("give one of a text, --image, --clip and --serve")
    if then and text is None:
        raise typer.BadParameter("--then goes with a text")
    if with_ and (image or clip or cut):
        raise typer.BadParameter("a picture, a clip and --cut are for videos: leave it out", param_hint="--with")
    quiet()
    from abridged.index.search import Hit, Searcher, Together, Where

    searcher = Searcher(model, folder, file)
    both = Together([searcher, *(Searcher(one, folder) for one in with_)]) if with_ else searcher
    if cut is not None and searcher.reads != ["videos"]:
        raise typer.BadParameter("is for videos, and this is an index of texts", param_hint="--cut")
    if serve:
        from abridged.index.serve import serve as run

        server = run(both, port, rerank)
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/ (end it with Ctrl+C)")
        server.serve_forever()
    where = Where(under, since.timestamp() if since else None)
    if text is not None:
        hits = both.text(text, then or (), limit, where, rerank)
    else:
        hits = [*(searcher.picture(image, limit, where) if image else searcher.clip(clip or Path(), limit, where))]
    told = [hit.as_dict() for hit in hits]
    if cut is not None:
        from abridged.index.cut import cut_all

        moments = [hit for hit in hits if isinstance(hit, Hit)]
        for one, written in zip(told, cut_all(searcher.folder, moments, cut), strict=True):
            one["clip"] = str(written)
    if json:
        print_json(told)
    elif not hits:
        typer.echo("nothing is found")
    elif all(isinstance(hit, Hit) for hit in hits):
        rows = [
            [hit.path, clock(hit.start), clock(hit.end), f"{hit.score:.3f}"] for hit in hits if isinstance(hit, Hit)
        ]
        print_table(["file", "from", "to", "score"], rows)
    else:
        for hit in hits:
            if isinstance(hit, Hit):
                typer.echo(printable(f"{hit.path} {clock(hit.start)}-{clock(hit.end)}  {hit.score:.3f}"))
            elif hit.line is None:
                typer.echo(printable(f"{hit.path} (changed since it was indexed)  {hit.score:.3f}"))
            else:
                place = f"{hit.path}:{hit.line}" + (f"-{hit.last_line}" if hit.last_line != hit.line else "")
                typer.echo(printable(f"{place}  {hit.score:.3f}\n{indent(hit.text or '', '    ')}"))


def clock(seconds: float) -> str:
    """1:02:03.4, or 2:03.4."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, left = divmod(minutes, 60)
    head = f"{hours}:{left:02d}" if hours else str(left)
    return f"{head}:{rest / 10:04.1f}"

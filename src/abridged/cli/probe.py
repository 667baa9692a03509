"""`abridged probe`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_table, quiet


def probe(
    model: options.AnyModel,
    data: options.Data,
    pruned: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A pruned student of MODEL: which heads its masks removed.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Training examples that are looked at, at most.")] = 32,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of an example.", show_default="the model's")
    ] = None,
    columns: options.Columns = None,
    task: options.Task = None,
    json: options.Json = False,
) -> None:
    """Say what each attention head looks at: special tokens, the token itself, the one before; and its entropy.

    With --pruned, also which heads were removed, and whether those on special tokens (the first token, where a text has
    none) and on the current one went first: Spearman's rank correlation with the masks' scores, below 0 if so.

    Examples: abridged probe bundled --data wikitext-2; abridged probe bundled --data wikitext-2 --pruned small
    """
    quiet()
    from abridged.pipeline import probe as run

    found = run(
        model, data, pruned=pruned, limit=limit, context=context, columns=options.columns_of(columns), task=task
    )
    if json:
        print_json(found)
        return
    rows = [
        [
            head["module"],
            str(head["head"]),
            *(f"{100 * head[name]:.1f} %" for name in ("special", "current", "previous")),
            f"{head['entropy']:.2f}",
            *([f"{head['score']:.2f}", "removed" if head["removed"] else ""] if "score" in head else []),
        ]
        for head in found["heads"]
    ]
    more = ["score", ""] if pruned else []
    print_table(["attention", "head", "special", "current", "previous", "entropy", *more], rows)
    for name, value in found.get("correlation", {}).items():
        typer.echo(f"rank correlation of the score with {name}: {'none' if value is None else f'{value:+.2f}'}")

"""`abridged classify`."""

from pathlib import Path
from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, quiet
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
    json: options.Json = False,
) -> None:
    """Label a text, or each line of a file; give a score where the model gives scores.

    Examples: abridged classify small "a charming film"; abridged classify small --file reviews.txt
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a text or --file")
    from abridged.data.labelled import read_texts

    firsts, seconds = ([text or ""], None if second is None else [second]) if file is None else read_texts(file)
    quick_start()
    quiet()
    from abridged.models.load import load_model
    from abridged.tasks.classification import classify as run

    found = run(*load_model(model), firsts, seconds)
    if json:
        print_json(found if file is not None else found[0])
        return
    for row in found:
        best = max(row, key=lambda label: row[label])
        typer.echo(f"{row[best]:.3f}" if "score" in row else f"{printable(best)}\t{row[best]:.3f}")

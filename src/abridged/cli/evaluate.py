"""`abridged evaluate`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_pairs, quiet


def evaluate(
    model: options.AnyModel,
    data: options.Data,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window.", show_default="all that the model's positions allow")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between window starts.", show_default="the context")
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure perplexity, per token and per word, on the test part of a text.

    Example: abridged evaluate small --data wikitext-2 --json
    """
    quiet()
    from abridged.pipeline import evaluate as run

    result = run(model, data, context=context, stride=stride)
    if json:
        print_json(result)
        return
    print_pairs(
        {
            "perplexity per token": f"{result['perplexity']:.3f}",
            "perplexity per word": f"{result['word_perplexity']:.3f}",
            "tokens": f"{result['tokens']:,}",
            "words": f"{result['words']:,}",
            "context, stride": f"{result['context']}, {result['stride']} tokens",
        }
    )

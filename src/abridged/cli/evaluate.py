"""`abridged evaluate`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_pairs, print_table, quiet


def evaluate(
    model: options.AnyModel,
    data: Annotated[
        str | None, typer.Option(help="Text to measure perplexity on: a name, a file or a folder.", show_default=False)
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a window.", show_default="all that the model's positions allow")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between window starts.", show_default="the context")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Tasks of lm-evaluation-harness instead of a text.", show_default=False),
    ] = None,
    tasks_folder: Annotated[
        str | None, typer.Option(help="Folder of YAML files that describe further tasks.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task at most.", show_default="all")] = None,
    json: options.Json = False,
) -> None:
    """Measure perplexity, per token and per word, on the test part of a text; or run tasks.

    Examples: abridged evaluate small --data wikitext-2 --json; abridged evaluate small --tasks lambada_openai
    """
    if (data is None) == (tasks is None):
        raise typer.BadParameter("give either --data or --tasks")
    quiet()
    if tasks is not None:
        from abridged.evaluation.tasks import evaluate_tasks

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        scores = evaluate_tasks(model, names, include=tasks_folder, limit=limit)
        if json:
            print_json(scores)
        else:
            rows = [[task, metric, f"{value:.4g}"] for task, row in scores.items() for metric, value in row.items()]
            print_table(["task", "metric", "value"], rows, left=(0, 1))
        return
    assert data is not None
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

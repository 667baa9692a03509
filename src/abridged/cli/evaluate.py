"""`abridged evaluate`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_pairs, print_table, quiet


def evaluate(
    model: options.AnyModel,
    data: Annotated[
        str | None,
        typer.Option(help="Text or pairs to measure on: a name, a file or a folder.", show_default=False),
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
    limit: Annotated[int | None, typer.Option(help="Documents, or pairs, at most.", show_default="all")] = None,
    metric: Annotated[str, typer.Option(help="perplexity, or rouge of what an encoder-decoder writes.")] = "perplexity",
    columns: options.Columns = None,
    task: options.Task = None,
    beams: options.Beams = None,
    max_new_tokens: options.SummaryTokens = None,
    batch_size: options.BatchSize = 16,
    json: options.Json = False,
) -> None:
    """Measure perplexity, or ROUGE, on the test part of your data; or run tasks.

    Examples: abridged evaluate small --data wikitext-2 --json; abridged evaluate small --tasks lambada_openai;
    abridged evaluate small-bart --data pairs.jsonl --metric rouge
    """
    if metric not in ("perplexity", "rouge"):
        raise typer.BadParameter(f"{metric!r} is none: there are perplexity and rouge", param_hint="--metric")
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
    pair = options.columns_of(columns)
    if metric == "rouge":
        from abridged.tasks import two_columns

        _rouge(model, data, two_columns(pair), limit, beams, max_new_tokens, batch_size, json)
        return
    from abridged.evaluation.scores import METRICS
    from abridged.pipeline import evaluate as run

    result = run(model, data, context=context, stride=stride, columns=pair, task=task)
    if json:
        print_json(result)
        return
    if "score" in result:
        print_pairs(
            {name: f"{result[name]:.2f}" for name in METRICS if name in result} | {"texts": f"{result['texts']:,}"}
        )
        return
    if "stride" not in result:
        print_pairs(
            {
                "perplexity per token": f"{result['perplexity']:.3f}",
                "perplexity per word": f"{result['word_perplexity']:.3f}",
                "targets": f"{result['examples']:,}, {result['tokens']:,} tokens, {result['words']:,} words",
            }
        )
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


def _rouge(
    model: str,
    data: str,
    columns: tuple[str, str] | None,
    limit: int | None,
    beams: int | None,
    max_new_tokens: int | None,
    batch_size: int,
    json: bool,
) -> None:
    from abridged.evaluation.summaries import SearchSettings
    from abridged.pipeline import evaluate_summaries
    from abridged.training.progress import counter

    settings = SearchSettings(beams=beams, max_new_tokens=max_new_tokens, batch_size=batch_size)
    with counter("summaries") as show:
        result = evaluate_summaries(model, data, columns=columns, limit=limit, settings=settings, show=show)
    if json:
        print_json(result)
        return
    pairs = {"ROUGE-1, 2, L": ", ".join(f"{result[key]:.2f}" for key in ("rouge1", "rouge2", "rougeL"))}
    if "best_reference" in result:
        best = ", ".join(f"{result['best_reference'][key]:.2f}" for key in ("rouge1", "rouge2", "rougeL"))
        pairs["nearest of several references"] = f"{best} ({result['with_references']:,} pairs have several)"
    pairs |= {
        "words, of the references": f"{result['words']:.1f}, {result['reference_words']:.1f}",
        "repeated word pairs": f"{100 * result['repeated']:.1f} %",
        "summaries": f"{result['pairs']:,} ({result['empty']} empty, {result['sources_cut']} of documents cut)",
        "speed": f"{result['tokens_per_second']:,.0f} tokens/s",
    }
    print_pairs(pairs)

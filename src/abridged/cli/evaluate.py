"""`abridged evaluate`."""

from typing import Annotated, Any

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
        int | None, typer.Option(help="Tokens in a window.", show_default="the model's, at most 1,024")
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
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many tokens of a text, pairs, rows, or documents.", show_default="all"),
    ] = None,
    metric: Annotated[str, typer.Option(help="perplexity, or rouge of what an encoder-decoder writes.")] = "perplexity",
    columns: options.Columns = None,
    task: options.Task = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Of a model of vectors: how far the sentences nearest to each are those that this model finds.",
            show_default=False,
        ),
    ] = None,
    beams: options.Beams = None,
    max_new_tokens: options.SummaryTokens = None,
    batch_size: options.BatchSize = 16,
    json: options.Json = False,
) -> None:
    """Measure perplexity, or ROUGE, on the test part of your data; or how well vectors find; or run tasks.

    Examples: abridged evaluate small --data wikitext-2 --json; abridged evaluate small --tasks lambada_openai;
    abridged evaluate small-bart --data pairs.jsonl --metric rouge; abridged evaluate small --task retrieval --data
    queries.tsv; abridged evaluate small --data sentences.txt --teacher sentence-transformers/all-MiniLM-L6-v2
    """
    if metric not in ("perplexity", "rouge"):
        raise typer.BadParameter(f"{metric!r} is none: there are perplexity and rouge", param_hint="--metric")
    if (data is None) == (tasks is None):
        raise typer.BadParameter("give either --data or --tasks")
    if teacher is not None and (task is not None or metric == "rouge" or data is None):
        raise typer.BadParameter("goes with --data alone", param_hint="--teacher")
    if data is not None:
        options.check_there(model, data)
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
        search = {"beams": beams, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        _rouge(model, data, pair, limit, search, json)
        return
    from abridged.data.judged import RETRIEVAL
    from abridged.pipeline import evaluate as run
    from abridged.pipeline import evaluate_vectors

    if teacher is not None or task == RETRIEVAL:
        result = evaluate_vectors(model, data, teacher=teacher, columns=pair, limit=limit)
    else:
        result = run(model, data, context=context, stride=stride, columns=pair, task=task, limit=limit)
    if json:
        print_json(result)
        return
    counts = {key.replace("_", " "): f"{count:,}" for key, count in result.facts.items()}
    shown = {m.column: f"{m.value:.3f}" for m in result.measurements if m.title}
    kinds = {f"F1 of {m.part}": f"{m.value:.3f}" for m in result.measurements if m.part}
    print_pairs(shown | kinds | counts)


def _rouge(
    model: str, data: str, columns: tuple[str, ...] | None, limit: int | None, search: dict[str, Any], json: bool
) -> None:
    from abridged.core.progress import counter
    from abridged.evaluation.summaries import SearchSettings
    from abridged.pipeline import evaluate_summaries

    with counter("summaries") as show:
        result = evaluate_summaries(
            model, data, columns=columns, limit=limit, settings=SearchSettings(**search), show=show
        )
    if json:
        print_json(result)
        return
    pairs = {m.column: f"{m.value:.2f}" for m in result.measurements}
    if "best_reference" in result:
        best = ", ".join(f"{value:.2f}" for value in result["best_reference"].values())
        pairs["nearest of several references"] = f"{best} ({result['with_references']:,} pairs have several)"
    pairs |= {
        "words, of the references": f"{result['words']:.1f}, {result['reference_words']:.1f}",
        "repeated word pairs": f"{100 * result['repeated']:.1f} %",
        "summaries": f"{result['pairs']:,} ({result['empty']} empty, {result['sources_cut']} of documents cut)",
        "speed": f"{result['tokens_per_second']:,.0f} tokens/s",
    }
    print_pairs(pairs)

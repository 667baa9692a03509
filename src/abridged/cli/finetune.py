"""`abridged finetune`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import print_json, print_pairs, quiet


def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub name, a directory, `bundled`, or a .yaml file that describes a model to train from scratch.",
            show_default=False,
        ),
    ],
    data: options.Data,
    output: options.Output,
    columns: options.Columns = None,
    task: options.Task = None,
    overrides: options.Set = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = None,
    dtype: Annotated[str, typer.Option(help="What the weights are stored in: float32 or float16.")] = "float32",
    json: options.Json = False,
) -> None:
    """Train MODEL at full precision on your data, to be the teacher of a small one.

    A language model goes on with a text; an encoder-decoder learns from pairs, or to restore one text from noise.

    Examples: abridged finetune gpt2 --data my-text.txt --output teacher --set epochs=2;
    abridged finetune facebook/bart-base --data pairs.jsonl --columns document,summary --output teacher
    """
    quiet()
    from abridged.evaluation.scores import METRICS
    from abridged.evaluation.summaries import ROUGE
    from abridged.pipeline import finetune as run

    record = run(
        model,
        data,
        output,
        columns=options.columns_of(columns),
        task=task,
        overrides=overrides or (),
        resume=resume,
        overwrite=overwrite,
        seed=seed,
        dtype=dtype,
    )
    if not record:  # one of several processes, and not the one that writes
        return
    if json:
        print_json(record)
        return
    before, after = record["validation"]["before"], record["validation"]["after"]
    if "score" in after:
        measured = {"before, validation": before, "after, validation": after, "after, test": record["test"]}
        shown = {
            name: ", ".join(f"{metric} {found[metric]:.2f}" for metric in METRICS if metric in found)
            for name, found in measured.items()
            if found
        }
        print_pairs({**shown, "written to": str(output)})
        return
    rouge = (record["test"] or {}).get("rouge")
    print_pairs(
        {
            "perplexity before": f"{before['perplexity']:.2f} per token (validation)" if before else "untrained",
            "perplexity after": f"{after['perplexity']:.2f} per token (validation)",
            **({"ROUGE-1, 2, L": ", ".join(f"{rouge[k]:.2f}" for k in ROUGE) + " (test)"} if rouge else {}),
            "written to": str(output),
        }
    )

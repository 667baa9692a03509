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
    overrides: options.Set = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = None,
    dtype: Annotated[str, typer.Option(help="What the weights are stored in: float32 or float16.")] = "float32",
    json: options.Json = False,
) -> None:
    """Train MODEL at full precision on your text, to be the teacher of a small one.

    Example: abridged finetune gpt2 --data my-text.txt --output teacher --set epochs=2
    """
    quiet()
    from abridged.pipeline import finetune as run

    record = run(
        model, data, output, overrides=overrides or (), resume=resume, overwrite=overwrite, seed=seed, dtype=dtype
    )
    if not record:  # one of several processes, and not the one that writes
        return
    if json:
        print_json(record)
        return
    before, after = record["validation"]["before"], record["validation"]["after"]
    print_pairs(
        {
            "perplexity before": f"{before['perplexity']:.2f} per token (validation)" if before else "untrained",
            "perplexity after": f"{after['perplexity']:.2f} per token (validation)",
            "written to": str(output),
        }
    )

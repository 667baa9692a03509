"""`abridged generate`."""

from typing import Annotated

import typer

from abridged.cli import options
from abridged.cli.output import quiet


def generate(
    model: options.AnyModel,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 from all.")] = 50,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest that sum to this.")] = 1.0,
    seed: options.Seed = None,
) -> None:
    """Continue a prompt, token by token as they come; the speed goes to standard error.

    Example: abridged generate small "The river" --max-new-tokens 50 --seed 1
    """
    quiet()
    from abridged.evaluation.generation import generate as run
    from abridged.models import load_any, load_tokenizer

    loaded = load_any(model)
    tokenizer = load_tokenizer(model, loaded)
    pieces = run(
        loaded,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    typer.echo(prompt, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
    typer.echo(f"{pieces.tokens} tokens in {pieces.seconds:.2f} s, {pieces.tokens_per_second:.1f} tokens/s", err=True)

"""`abridged generate`."""

from typing import Annotated, Any

import typer

from abridged.cli import options
from abridged.cli.output import quiet
from abridged.core.quick_start import quick_start


def generate(
    model: options.AnyModel,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write at most.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 from all.")] = 50,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest that sum to this.")] = 1.0,
    seed: options.Seed = None,
    cache_bits: Annotated[int, typer.Option(help="Bits of keys and values: 16 or 8.")] = 16,
    engine: Annotated[str, typer.Option(help="abridged, or llama.cpp, which runs a GGUF file.")] = "abridged",
) -> None:
    """Continue a prompt, token by token as they come; the speed goes to standard error.

    Examples: abridged generate small "The river" --max-new-tokens 50 --seed 1;
    abridged generate small.gguf "The river" --engine llama.cpp
    """
    if engine not in ("abridged", "llama.cpp"):
        raise typer.BadParameter(f"{engine!r} is none: there are abridged and llama.cpp", param_hint="--engine")
    if cache_bits != 16 and engine != "abridged":
        raise typer.BadParameter(f"{engine} keeps keys and values in its own way", param_hint="--cache-bits")
    quick_start()
    quiet()
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    pieces: Any
    if engine == "llama.cpp":
        from abridged.evaluation.llama_cpp import generate as by_engine

        pieces = by_engine(model, prompt, **settings)
    else:
        from abridged.evaluation.generation import generate as run
        from abridged.models.load import load_model

        pieces = run(*load_model(model), prompt, **settings, cache_bits=cache_bits)
    typer.echo(prompt, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
    if pieces.is_cut:
        typer.echo(f"the model's context is full: {pieces.tokens} of {max_new_tokens} tokens were written", err=True)
    if cache_bits == 8 and pieces.cache_bits != 8:
        kept = f"keys and values stayed in {pieces.cache_bits} bits"
        typer.echo(f"{kept}: a step of this model is not one call into the library", err=True)
    typer.echo(f"{pieces.tokens} tokens in {pieces.seconds:.2f} s, {pieces.tokens_per_second:.1f} tokens/s", err=True)

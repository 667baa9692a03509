"""The `abridged` command itself: its verbs, and how faults end.

Every verb's module is light at the top: torch and transformers are imported when the verb runs, so that
`abridged --help` answers at once.
"""

import os
from typing import Any

import typer
from typer.core import TyperGroup

from abridged.cli import (
    augment,
    bench,
    classify,
    compress,
    embed,
    evaluate,
    export,
    finetune,
    generate,
    index,
    inspect,
    plan,
    probe,
    recipes,
    search,
    summarize,
    trim,
)
from abridged.core.errors import AbridgedError
from abridged.core.names import TRUST
from abridged.core.text import printable

RESUMABLE = {"compress", "finetune"}


class Verbs(TyperGroup):
    """A group of verbs that ends every expected fault in one sentence on standard error and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AbridgedError as error:
            typer.echo(f"abridged: {printable(str(error))}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            resumable = ctx.invoked_subcommand in RESUMABLE
            how = ": run the same command with --resume to go on from its last checkpoint" if resumable else ""
            typer.echo(f"abridged: interrupted{how}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs,
    name="abridged",
    help="Make a pre-trained transformer 10-30 times smaller and keep what it can do.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(finetune.finetune)
app.command()(compress.compress)
app.command()(evaluate.evaluate)
app.command()(generate.generate)
app.command()(summarize.summarize)
app.command()(classify.classify)
app.command()(embed.embed)
app.command()(augment.augment)
app.command()(trim.trim)
app.command()(plan.plan)
app.command()(inspect.inspect)
app.command()(probe.probe)
app.command()(export.export)
app.command()(bench.bench)
app.command()(index.index)
app.command()(search.search)
app.add_typer(recipes.app)


@app.callback(invoke_without_command=True)
def root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    trust_remote_code: bool = typer.Option(
        False,
        "--trust-remote-code",
        help="Run code that a model brings along; given before the verb. Without it no such code is run.",
    ),
) -> None:
    if trust_remote_code:
        os.environ[TRUST] = "1"  # processes that are started find it too
    if version:
        from abridged import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    # Read by the libraries when they are imported; a person who sets them keeps them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # which it would look for in every package that is installed, for as long as `--help` takes otherwise
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    app()

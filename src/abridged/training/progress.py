"""The line that shows how far a long job is, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, steps: int, done: int = 0, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yield `update(step, loss=None, tokens_per_second=None, watched=None)`; draws only on a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    words: dict[str, str] = {}
    with Progress(*columns, console=console, disable=not show, transient=False, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=steps, completed=done, words="")

        def update(
            step: int,
            loss: float | None = None,
            tokens_per_second: float | None = None,
            watched: dict[str, float] | None = None,
        ) -> None:
            if loss is not None:
                words["loss"] = f"loss {loss:.3f}"
            if watched is not None:
                words["watched"] = "  ".join(f"{name} {value:.2f}" for name, value in watched.items())
            if tokens_per_second is not None:
                words["speed"] = f"{tokens_per_second:,.0f} tokens/s"
            bar.update(task, completed=step, words="  ".join(words.values()))

        yield update


@contextmanager
def counter(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, of)` for work whose size is known when it begins; draws only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)

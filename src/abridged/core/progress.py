"""How far a long job is, on standard error: a bar in a terminal, plain lines in a file or a pipe."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

#: Seconds until the first plain line, and between two.
FIRST, EVERY = 5.0, 30.0

_drawing = False  # a bar or lines inside others would tear them


@contextmanager
def progress(title: str, steps: int, done: int = 0, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yield `update(step, loss=None, tokens_per_second=None, watched=None)`; `done` of the `steps` were made before.

    Within another job's progress, or without `show`, nothing is drawn.
    """
    words: dict[str, str] = {}
    with _drawn(title, steps, done, show, transient=False) as draw:

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
            draw(step, steps, "  ".join(words.values()))

        yield update


@contextmanager
def counter(title: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield `update(done, of, words="")` for work whose size is known when it begins, of which `done` was done before;
    drawn as `progress` is."""
    with _drawn(title, None, done, True, transient=True) as draw:
        yield lambda done, of, words="": draw(done, of, words)


@contextmanager
def _drawn(
    title: str, total: int | None, done: int, show: bool, transient: bool
) -> Iterator[Callable[[int, int, str], None]]:
    global _drawing
    if not show or _drawing:
        yield lambda done, of, words: None
        return
    _drawing = True
    try:
        if sys.stderr.isatty():
            with _bar(title, total, done, transient) as draw:
                yield draw
        else:
            lines = Lines(title, done)
            yield lines
            lines.close()
    finally:
        _drawing = False


@contextmanager
def _bar(title: str, total: int | None, done: int, transient: bool) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient, refresh_per_second=4) as bar:
        task = bar.add_task(title, total=total, completed=done, words="")
        yield lambda done, of, words: bar.update(task, completed=done, total=of, words=words)


class Lines:
    """Plain lines: the first after some seconds, then one at most every half minute, and the last step's."""

    def __init__(
        self, title: str, done: int = 0, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.title, self.done, self.out, self.clock = title, done, out, clock
        self.began = clock()
        self.due = self.began + FIRST
        self.written: tuple[int, str] | None = None  #: of the last line, the step and its words
        self.last: tuple[int, int, str] | None = None

    def __call__(self, done: int, of: int, words: str) -> None:
        """Take note of `done` steps of `of`; writes a line when one is due."""
        self.last = (done, of, words)
        if self.clock() >= self.due:
            self._write()

    def close(self) -> None:
        """Write how it ended, where anything was written before."""
        if self.written is not None and self.last is not None and self.written != (self.last[0], self.last[2]):
            self._write()

    def _write(self) -> None:
        assert self.last is not None
        done, of, words = self.last
        now = self.clock()
        seconds = now - self.began
        parts = [f"{self.title}: {done:,} of {of:,}", words, f"{duration(seconds)} gone"]
        if self.done < done < of:
            parts.append(f"about {duration(seconds / (done - self.done) * (of - done))} left")
        print(", ".join(part for part in parts if part), file=self.out or sys.stderr, flush=True)
        self.due = now + EVERY
        self.written = (done, words)


def seconds_since(began: float) -> float:
    """Seconds since `began`, of time.perf_counter; never 0, since clocks may stand and speeds divide by it."""
    return max(time.perf_counter() - began, 1e-9)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

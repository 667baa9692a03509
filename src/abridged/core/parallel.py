"""Work shared out over the processor's cores by threads, for what lets go of Python's lock: hashes, large arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

#: Bytes from which threads are worth their start.
MUCH = 32 << 20


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def sharing(size: int) -> Iterator[Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """A function that begins a piece of work and returns another, which waits for it and gives its result.

    size: bytes of all the work; where they are few, each piece is done when its result is asked for.
    """
    if size < MUCH:
        yield lambda work: work
        return
    with ThreadPoolExecutor(cores()) as pool:
        yield lambda work: pool.submit(work).result

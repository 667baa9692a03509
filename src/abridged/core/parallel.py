"""Work shared out: over cores by threads, for what lets go of Python's lock (hashes, large arrays); over processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from abridged.core.errors import AbridgedError

#: Bytes from which threads are worth their start.
MUCH = 32 << 20

#: What makes a process ready, and returns the function that does a piece of the work.
Begin = Callable[[], Callable[[Any], Any]]


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


def spread(begin: Begin, items: Iterable[Any], workers: int) -> Iterator[Any]:
    """What `begin()(item)` gives for each item, as they come; the items are taken in their order.

    Args:
        begin: called once in each process; it, the items and the results can be pickled.
        workers: processes; one is this process. They end with it, even where it is killed.

    Raises:
        AbridgedError: a process has ended by itself; what the work raises comes out as it is.
    """
    if workers == 1:
        yield from map(begin(), items)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of libraries half
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(begin,))
    try:
        for done in as_completed([pool.submit(_do, item) for item in items]):
            yield done.result()
    except BrokenProcessPool:
        raise AbridgedError(
            "a worker process was ended from outside: for want of memory, fewer --workers help"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_begin: Begin | None = None
_work: Callable[[Any], Any] | None = None


def _start(begin: Begin) -> None:
    global _begin
    _begin = begin
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # whoever is asked to stop says so once
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import connection, parent_process

    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    global _work
    if _work is None:
        assert _begin is not None
        _work = _begin()
    return _work(item)

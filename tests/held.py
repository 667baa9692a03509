"""How much memory something takes while it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from abridged.core.hardware import give_back_memory, peak_memory, resident_memory

RESET = Path("/proc/self/clear_refs")


def held_by(run: Callable[[], object]) -> int:
    """The bytes that this process holds at most while `run` runs, beyond what it held before: the least of three runs,
    as the system counts pages of libraries, too, which it takes from a process and gives back. Skips the test where
    the most cannot be counted anew."""
    return min(_held_once(run) for _ in range(3))


def _held_once(run: Callable[[], object]) -> int:
    give_back_memory()
    try:
        RESET.write_text("5")
    except OSError:
        pytest.skip("the system does not count anew what a process has held at most")
    before = resident_memory()
    run()
    return peak_memory() - before

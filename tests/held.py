"""How much memory something takes while it runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from abridged.core.hardware import give_back_memory, peak_memory, resident_memory

RESET = Path("/proc/self/clear_refs")


def held_by(run: Callable[[], object]) -> int:
    """The bytes that this process holds at most while `run` runs, beyond what it held before; skips the test where the
    system does not let the most be counted anew."""
    give_back_memory()
    try:
        RESET.write_text("5")
    except OSError:
        pytest.skip("the system does not count anew what a process has held at most")
    before = resident_memory()
    run()
    return peak_memory() - before

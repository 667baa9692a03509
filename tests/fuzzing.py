"""Random inputs for as long as there is time. What fails is shrunk, and kept under tests/regressions to be replayed."""

import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

REGRESSIONS = Path(__file__).parent / "regressions"
#: Of each fuzzer, and the seed of its first round.
SECONDS, SEED = float(os.environ.get("ABRIDGED_FUZZ_SECONDS", 60)), int(os.environ.get("ABRIDGED_FUZZ_SEED", 0))
HANGS = 10  #: seconds after which one input counts as hanging
_ROUND = 500  #: examples that one seed gives


def fuzz(check: Callable[[Any], None], inputs: SearchStrategy, kept: Callable[[Any], tuple[str, bytes]]) -> int:
    """Try `check` on `inputs`, round after round, each of its own seed, until `SECONDS` are over; how many were tried.

    Args:
        check: raises for an input that fails.
        kept: the path under `REGRESSIONS`, without its digest, and the content of the file that keeps an input.
    """
    tried, end = 0, time.monotonic() + SECONDS
    failed: list[Any] = []

    def one(example: Any) -> None:
        nonlocal tried
        if time.monotonic() > end and not failed:  # a failure is shrunk to its end
            return
        tried += 1
        try:
            with limited():
                check(example)
        except BaseException:
            failed.append(example)
            raise

    for number in itertools.count(SEED):
        run = settings(
            max_examples=_ROUND,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )(seed(number)(given(inputs)(one)))
        try:
            run()
        except BaseException:
            name, content = kept(failed[-1])
            path = (REGRESSIONS / name).with_stem(f"{Path(name).stem}-{hashlib.sha256(content).hexdigest()[:12]}")
            path.write_bytes(content)
            print(f"seed {number}, {tried} inputs; kept as {path}")
            raise
        if time.monotonic() > end:
            print(f"{tried} inputs, of seeds {SEED} to {number}")
            return tried
    raise AssertionError("there is always another round")


@contextmanager
def limited(seconds: float = HANGS):
    """Raise TimeoutError inside of what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

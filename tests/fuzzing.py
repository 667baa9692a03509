"""Random inputs, so many, or for as long as there is time. What fails is shrunk, and kept to be replayed.

Without ABRIDGED_FUZZ_SECONDS each fuzzer tries the same inputs everywhere, so that what passes on one machine passes on
a faster one; with it, all that it comes to.
"""

import hashlib
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

REGRESSIONS = Path(__file__).parent / "regressions"
#: Of each fuzzer (0: as many inputs as it has by itself), and the first of its seeds.
SECONDS, SEED = float(os.environ.get("ABRIDGED_FUZZ_SECONDS", 0)), int(os.environ.get("ABRIDGED_FUZZ_SEED", 0))
HANGS = 10  #: seconds after which one input counts as hanging
_ROUND, _ROUNDS = 500, 2  #: examples that one seed gives, and seeds where no time is given


def seeds(count: int) -> Iterator[int]:
    """`count` seeds from SEED on, or those that there is time for."""
    end = time.monotonic() + SECONDS
    for number in itertools.count(SEED):
        if time.monotonic() > end if SECONDS else number >= SEED + count:
            return
        yield number


def fuzz(check: Callable[[Any], None], inputs: SearchStrategy, kept: Callable[[Any], tuple[str, bytes]]) -> int:
    """Try `check` on `inputs`, round after round, each of its own seed (see `seeds`); how many were tried.

    Args:
        check: raises for an input that fails.
        kept: the path under `REGRESSIONS`, without its digest, and the content of the file that keeps an input.
    """
    tried, end = 0, time.monotonic() + (SECONDS or math.inf)
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

    for number in seeds(_ROUNDS):
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
    print(f"{tried} inputs, of seeds {SEED} to {number}")
    return tried


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

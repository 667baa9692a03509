"""Work shared out over a cluster by Ray Data."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from abridged.core.errors import AbridgedError
from abridged.core.parallel import Begin


class _Worker:
    """An actor: one process of the cluster."""

    def __init__(self, begin: Begin) -> None:
        self.work = begin()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.work(row["item"])
        return found


def spread(begin: Begin, items: Sequence[Any], workers: int | None, address: str) -> Iterator[dict[str, Any]]:
    """As `core.parallel.spread`, of results that are flat dicts.

    Args:
        workers: actors, of one core each; None: as many as the cluster has cores.
        address: of a cluster, `auto` for the one that this machine is in, or `local` for one of this machine's cores.

    Raises:
        AbridgedError: ray is not installed, the cluster cannot be reached, or a worker fails: what it raised.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise AbridgedError('--ray needs Ray Data: pip install "abridged[ray]"') from None
    if not items:
        return
    ray.data.DataContext.get_current().enable_progress_bars = False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
    try:
        ray.init(address=address, **(quiet if address == "local" else {}), ignore_reinit_error=True)
    except Exception as error:  # ray raises what its layers raise
        raise AbridgedError(f"cannot reach the Ray cluster {address}: {_line(error)}") from error
    count = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(items))
    try:
        rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        done = rows.map(
            _Worker, fn_constructor_args=(begin,), compute=ray.data.ActorPoolStrategy(size=count), num_cpus=1
        )
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        raise AbridgedError(_line(getattr(error, "cause", None) or error)) from error
    finally:
        ray.shutdown()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

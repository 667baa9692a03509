"""How long this machine takes for matrix products of every size that a model may be cut to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from abridged.core.progress import seconds_since
from abridged.families.layout import Layout

Measure = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""(units left by axis, gates of the parts from 0 to 1) -> an amount; numbers, or tensors with gradients."""

#: Shares of a matrix's rows and columns that are measured; between them time is interpolated.
_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
_SECONDS = 0.01  #: that a product is repeated for, at least
_REPEATS = 3  #: of which the fastest counts
_MOST = 1024  #: times that a product is repeated, also where the clock stands


def latency(layout: Layout, context: int) -> Measure:
    """Seconds of all products of a model with its matrices, for a sequence of `context` tokens.

    Norms, activations and the attention itself are left out: they take little, and shrink along.
    """
    tables = {
        module.path: _table(module.rows.total, module.columns.total, context)
        for module in layout.modules
        if module.columns is not None and (module.head or module.part not in ("embedding", "positions"))
    }

    def count(counts: Mapping[str, Any], gates: Mapping[str, Any]) -> Any:
        total: Any = 0.0
        for module in layout.modules:
            if module.path in tables and module.columns is not None:
                rows = module.rows.length(counts) / module.rows.total
                columns = module.columns.length(counts) / module.columns.total
                seconds = interpolated(tables[module.path], rows, columns)
                total = total + (seconds if module.gate is None else seconds * gates[module.gate])
        return total

    return count


@cache
def _table(rows: int, columns: int, context: int) -> Tensor:
    """Seconds at each pair of shares, (6, 6); nothing of a matrix takes none. Never less for more."""
    table = torch.zeros(len(_SHARES) + 1, len(_SHARES) + 1)
    for i, r in enumerate(_SHARES, 1):
        for j, c in enumerate(_SHARES, 1):
            table[i, j] = _measure(max(1, round(r * rows)), max(1, round(c * columns)), context)
    return table.cummax(0).values.cummax(1).values


def _measure(rows: int, columns: int, context: int) -> float:
    x, weight = torch.randn(context, columns), torch.randn(rows, columns)
    best, runs = float("inf"), 1
    with torch.inference_mode():
        for _ in range(_REPEATS):
            while True:
                began = time.perf_counter()
                for _ in range(runs):
                    torch.nn.functional.linear(x, weight)
                seconds = seconds_since(began)
                if seconds >= _SECONDS / _REPEATS or runs >= _MOST:
                    break
                runs *= 2
            best = min(best, seconds / runs)
    return best


def interpolated(table: Tensor, rows: Any, columns: Any) -> Any:
    """A table's value between its places, linear in both shares, with a gradient where they have one."""
    places = (0.0, *_SHARES)
    total: Any = 0.0
    for i, by_row in enumerate(_hats(rows, places)):
        for j, by_column in enumerate(_hats(columns, places)):
            total = total + float(table[i, j]) * by_row * by_column
    return total


def _hats(share: Any, places: tuple[float, ...]) -> list[Any]:
    """How much each place weighs in a linear interpolation at `share`: none but the two beside it."""
    value = float(share.detach() if isinstance(share, Tensor) else share)
    weights: list[Any] = [0.0] * len(places)
    above = next((i for i, place in enumerate(places) if place >= value - 1e-9 and i), len(places) - 1)
    step = places[above] - places[above - 1]
    weights[above] = (share - places[above - 1]) / step
    weights[above - 1] = (places[above] - share) / step
    return weights

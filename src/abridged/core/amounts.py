"""Amounts as people write them: 40MB, 25M, 3ms."""

from __future__ import annotations

import re
from typing import Literal

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1.0, "kb": 2.0**10, "mb": 2.0**20, "gb": 2.0**30}
_TIMES = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def amount(value: float | str, of: Literal["numbers", "time"], example: str) -> float:
    """What a person wrote as a number: 25000000, "25M", "40MB" (of 2^20 bytes), "3ms" (in seconds).

    Raises ValueError for anything else and for nothing; `example` shows how to write it.
    """
    units = _TIMES if of == "time" else _UNITS
    found = _AMOUNT.fullmatch(str(value).strip())
    if found is None or found[2].lower() not in units:
        raise ValueError(f"cannot be read: {value!r} (such as {example})")
    number = float(found[1]) * units[found[2].lower()]
    if number <= 0:
        raise ValueError("must be above 0")
    return number

"""Sizes as a person reads and writes them."""

from __future__ import annotations

from abridged.core import amounts
from abridged.core.errors import AbridgedError

_MOST_BYTES = 1 << 50


def size_in_bytes(size: int | str, option: str = "--size") -> int:
    """A size as people write it, in bytes.

    Raises:
        AbridgedError: it is no size; the sentence names the option that it was given to.
    """
    try:
        count = round(amounts.amount(size, "numbers", "40MB"))
    except ValueError as error:
        raise AbridgedError(f"{option} {error}") from None
    except OverflowError:
        count = _MOST_BYTES + 1
    if isinstance(size, str) and size.strip().isdecimal():
        raise AbridgedError(f"{option} needs a unit: {size.strip()}MB, or {size.strip()}B for bytes")
    if count > _MOST_BYTES:
        raise AbridgedError(f"{option} {size} is more than any model takes (such as 40MB)")
    return count


def megabytes(count: float) -> str:
    """Bytes as MB of 2^20."""
    return f"{count / 2**20:,.2f} MB"

"""What a plan may take on this machine beside the size of its file, as a person says it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from abridged.core.errors import AbridgedError
from abridged.planning.machine import Machine
from abridged.planning.words import megabytes, size_in_bytes


@dataclass(frozen=True)
class Limits:
    """At most so many bytes in `memory`; at least so many tokens a second, or so many `times` as many as the original
    writes in FP32."""

    memory: int | None = None
    speed: float | None = None
    times: float | None = None

    @classmethod
    def of(cls, speed: str | float | None, memory: str | int | None) -> Limits:
        """Such as "40" (tokens a second) or "2x", and "100MB".

        Raises:
            AbridgedError: they cannot be read.
        """
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(x|times)?\s*", str(speed), re.IGNORECASE)
        if speed is not None and (found is None or float(found[1]) <= 0):
            raise AbridgedError(f"--speed cannot be read: {speed!r} (such as 40, of tokens a second, or 2x)")
        number, relative = (float(found[1]), bool(found[2])) if found and speed is not None else (None, False)
        held = None if memory is None else size_in_bytes(memory, "--memory")
        return cls(held, None if relative else number, number if relative else None)

    @property
    def given(self) -> bool:
        return self != Limits()

    @property
    def of_speed(self) -> bool:
        return self.speed is not None or self.times is not None

    def within(self, machine: Machine) -> tuple[float, float]:
        """Bytes and seconds that the matrices of a plan may take together; infinity where it is no matter."""
        held = math.inf if self.memory is None or machine.rest_bytes is None else self.memory - machine.rest_bytes
        wanted = self._speed(machine)
        return held, math.inf if wanted is None else 1 / wanted - (machine.rest_seconds or 0.0)

    def refusal(self, which: int, size: int, bytes_: int | None, speed: float | None, machine: Machine) -> str:
        """Why a plan of a `size` cannot be had, of which the nearest takes so many bytes, or writes at that speed."""
        if which == 0:
            assert self.memory is not None
            return (
                f"no plan of {megabytes(size)} takes {megabytes(self.memory)} of memory on this machine: the least is "
                f"{megabytes(bytes_ or 0)}"
            )
        held = "" if self.memory is None else f" in {megabytes(self.memory)} of memory"
        dense = "" if self.times is None else f" ({self.times:g} times as many as the original)"
        return (
            f"no plan of {megabytes(size)} writes {self._speed(machine):,.0f} tokens/s{dense} on this machine{held}: "
            f"the fastest writes {speed:,.0f}"
        )

    def _speed(self, machine: Machine) -> float | None:
        if self.times is not None:
            assert machine.dense_seconds is not None
            return self.times / machine.dense_seconds
        return self.speed

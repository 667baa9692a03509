"""Numbers that say how good a model is, and what kind of number each is: nothing else knows a metric by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Measurement:
    """One number that says how good a model is."""

    name: str  #: its key in abridged.json
    value: float
    title: str = ""  #: what tables call it; "" = it is made of others that they show
    unit: str = "%"  #: or what it is counted by, such as "per token"
    better: Literal["lower", "higher"] = "higher"
    headline: bool = False  #: whether it is told how much of it was lost; the first such is watched while training
    part: str = ""  #: of what alone, where it is a part of another: a kind of entity, and how many there are
    logarithmic: bool = False  #: whether its logarithm is what adds up, as of a perplexity

    @property
    def column(self) -> str:
        """The head of its column in a table."""
        return self.title if self.unit == "%" else f"{self.title} {self.unit}"

    @property
    def rank(self) -> float:
        """The value with the sign that makes less better."""
        return self.value if self.better == "lower" else -self.value

    def loss(self, before: float) -> float | None:
        """What was lost of the value `before`, as a share of it: 0.195 is 19.5 % worse. None where that was 0."""
        if not before:
            return None
        return self.value / before - 1 if self.better == "lower" else 1 - self.value / before


class Measured(dict[str, Any]):
    """What was measured of a model as abridged.json has it, number by name, beside facts of what was read for it.

    Attributes:
        measurements: the numbers among them that say how good the model is, those of groups (`rouge`) included.
    """

    def __init__(self, measurements: Sequence[Measurement] = (), **facts: Any) -> None:
        super().__init__({m.name: m.value for m in measurements}, **facts)
        groups = [fact.measurements for fact in facts.values() if isinstance(fact, Measured)]
        self.measurements: list[Measurement] = [*measurements, *(m for group in groups for m in group)]

    def also(self, **facts: Any) -> Measured:
        """The same, and further facts or groups of measurements."""
        more = Measured(**facts)
        both = Measured()
        both.update(self | more)
        both.measurements = [*self.measurements, *more.measurements]
        return both

    @property
    def headline(self) -> Measurement:
        """The number to watch."""
        return next(m for m in self.measurements if m.headline)

    @property
    def facts(self) -> dict[str, Any]:
        """What is no measurement."""
        return {key: fact for key, fact in flat(self).items() if key not in {m.name for m in self.measurements}}


def flat(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured, also what abridged.json had of it, with its groups unfolded."""
    groups = [group for group in found.values() if isinstance(group, Mapping)]
    alone = {key: value for key, value in found.items() if not isinstance(value, Mapping)}
    return alone | {key: value for group in groups for key, value in group.items() if key not in alone}


def nats_lost(before: Measured, after: Measured) -> float | None:
    """The rise of a perplexity's logarithm, in nats; None of what has no perplexity."""
    was = next((m for m in before.measurements if m.logarithmic), None)
    now = next((m for m in after.measurements if was is not None and m.name == was.name), None)
    return math.log(now.value / was.value) if was is not None and now is not None else None


def loss_percent(teacher: Mapping[str, Any], student: Measured) -> dict[str, float]:
    """By how many per cent the headline measurements of a student are worse than its teacher's."""
    before = flat(teacher)
    lost = {m.name: m.loss(before[m.name]) for m in student.measurements if m.headline and m.name in before}
    return {name: 100 * share for name, share in lost.items() if share is not None}

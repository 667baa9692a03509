"""Training curves out of the lines of metrics.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

# what a "train" line holds beside the terms of the loss
_NOT_TERMS = {"event", "stage", "step", "loss", "lr", "tokens_per_second", "gradient_norm", "time", "seconds"}


@dataclass
class Curve:
    """A quantity over the steps of the whole run; a gap (NaN) stands between stages."""

    name: str
    steps: np.ndarray  #: (points,) counted through all stages
    values: np.ndarray  #: (points,)


@dataclass
class Training:
    """What was logged while training."""

    losses: list[Curve]  #: the loss, then its terms
    watched: Curve | None  #: what was watched on the validation part
    rates: list[Curve]
    starts: list[float]  #: steps at which the second and later stages began
    steps: int  #: of all stages together


def read_curves(metrics: Iterable[dict[str, Any]]) -> Training | None:
    """Curves of all stages, laid end to end; None where nothing was logged.

    A "train" line has `stage`, `step`, `loss`, the terms by name and `lr` (a number, or numbers by group); an
    "evaluate" line `stage`, `step` and behind them what was measured, the number to watch first. Other lines are
    passed over.
    """
    lines = [line for line in metrics if line.get("event") in {"train", "evaluate"} and _number(line.get("step"))]
    if not lines:
        return None
    ends: dict[int, float] = {}
    for line in lines:
        stage = int(line.get("stage", 0))
        ends[stage] = max(ends.get(stage, 0), line["step"])
    offsets, total = {}, 0.0
    for stage in sorted(ends):
        offsets[stage] = total
        total += ends[stage]
    points: dict[tuple[str, str], list[tuple[float, int, float]]] = {}

    def add(group: str, name: str, line: dict[str, Any], value: Any) -> None:
        if _number(value):
            stage = int(line.get("stage", 0))
            points.setdefault((group, name), []).append((offsets[stage] + line["step"], stage, float(value)))

    for line in lines:
        if line["event"] == "evaluate":
            watched = next(key for key in line if key not in _NOT_TERMS)
            add("watched", watched, line, line[watched])
            continue
        add("loss", "loss", line, line.get("loss"))
        for name, value in line.items():
            if name not in _NOT_TERMS:
                add("loss", name, line, value)
        rates = line.get("lr")
        for name, value in (rates if isinstance(rates, dict) else {"weights": rates}).items():
            add("rate", name, line, value)
    drawn = {key: _curve(key[1], value) for key, value in points.items()}
    losses = [curve for (group, _), curve in drawn.items() if group == "loss"]
    if len(losses) == 2 and np.allclose(losses[0].values, losses[1].values, equal_nan=True):
        losses = losses[1:]  # a single term of weight 1 is the loss
    return Training(
        losses=losses,
        watched=next((curve for (group, _), curve in drawn.items() if group == "watched"), None),
        rates=[curve for (group, _), curve in drawn.items() if group == "rate"],
        starts=list(offsets.values())[1:],
        steps=int(total),
    )


def _curve(name: str, points: list[tuple[float, int, float]]) -> Curve:
    points = sorted(points)
    steps: list[float] = []
    values: list[float] = []
    for index, (step, stage, value) in enumerate(points):
        if index and stage != points[index - 1][1]:
            steps.append(step)
            values.append(float("nan"))
        steps.append(step)
        values.append(value)
    return Curve(name, np.asarray(steps), np.asarray(values))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

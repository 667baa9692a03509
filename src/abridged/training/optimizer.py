"""AdamW's parameter groups, and the rates that they have at each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.data.examples import Examples


def total_steps(settings: TrainingSettings, examples: Examples) -> int:
    """Optimiser steps of a stage."""
    if settings.epochs is not None:
        return max(1, round(settings.epochs * len(examples) / settings.batch_size))
    return settings.steps


def rate_factor(settings: TrainingSettings, step: int, steps: int) -> float:
    """The share of its peak that every learning rate has at `step` of `steps` (warm-up, then decay)."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    decay = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[settings.schedule]
    return settings.final_rate + (1 - settings.final_rate) * decay


def make_optimizer(
    system: nn.Module, settings: TrainingSettings, groups: dict[str, list[nn.Parameter]]
) -> torch.optim.AdamW:
    """AdamW with one group for matrices (decayed), one for vectors, and one for each of the method's own groups.

    Each group's peak rate is its `rate`; `lr` is set before every step.

    Raises:
        AbridgedError: `settings.learning_rates` names a group that is not among `groups`.
    """
    unknown = set(settings.learning_rates) - set(groups)
    if unknown:
        raise AbridgedError(
            f"learning_rates names the group {' and '.join(sorted(unknown))}, which this stage's methods do not have "
            f"(they have: {', '.join(groups) or 'none'})"
        )
    own = {id(p) for parameters in groups.values() for p in parameters}
    rest = [p for p in system.parameters() if p.requires_grad and id(p) not in own]

    def group(name: str, parameters: list[nn.Parameter], rate: float, weight_decay: float = 0.0) -> dict[str, Any]:
        return {"name": name, "params": parameters, "rate": rate, "weight_decay": weight_decay, "lr": 0.0}

    param_groups = [
        group("weights", [p for p in rest if p.ndim > 1], settings.learning_rate, settings.weight_decay),
        group("vectors", [p for p in rest if p.ndim <= 1], settings.learning_rate),
    ]
    for name, parameters in groups.items():
        param_groups.append(group(name, parameters, settings.learning_rates.get(name, settings.learning_rate)))
    return torch.optim.AdamW([g for g in param_groups if g["params"]], betas=settings.betas, fused=True)

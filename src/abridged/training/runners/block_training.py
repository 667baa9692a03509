"""Training of one block by gradients, to put out what the teacher's block does.

As in EfficientQAT (Chen et al., arXiv:2407.11062, section 3.2): all of a block is trained, weights, scales and norms,
against the mean squared error of its output; nothing of the model outside of it is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.core.settings import TrainingSettings
from abridged.methods.base import Attached
from abridged.training.optimizer import make_optimizer, rate_factor
from abridged.training.processes import autocast
from abridged.training.runners.passes import hidden_of

#: What the block being trained and the teacher's put out of a batch, and which tokens count (B, T); None: all.
Outputs = Callable[[str], tuple[Any, Any, Tensor | None]]


def train_block(
    block: nn.Module,
    methods: Sequence[Attached],
    groups: dict[str, list[nn.Parameter]],
    settings: TrainingSettings,
    keys: Sequence[str],
    outputs: Outputs,
    seed: int,
) -> tuple[float, float]:
    """Train a block in place, for `settings.steps` steps of one batch each; each epoch in another order.

    Returns:
        The error of the first and the last pass over the data: squared, over the variance of what is wanted.

    Raises:
        AbridgedError: the error is not finite.
    """
    steps = settings.steps if settings.epochs is None else max(1, round(settings.epochs * len(keys)))
    block.requires_grad_(True)
    optimizer = make_optimizer(block, settings, groups)
    draw = torch.Generator().manual_seed(seed)
    errors: list[float] = []
    order: list[int] = []
    for step in range(steps):
        order = order or torch.randperm(len(keys), generator=draw).tolist()
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * rate_factor(settings, step, steps)
        for method in methods:
            method.step(step / steps)
        with torch.enable_grad(), autocast(settings):
            found, wanted, counts = outputs(keys[order.pop()])
            error = relative_error(hidden_of(found), hidden_of(wanted), counts)
        loss = error + sum((value for one in methods for value in one.penalties().values()), torch.zeros(()))
        if not math.isfinite(float(loss.detach())):
            raise AbridgedError(
                f"the error of a block's outputs is not finite at step {step + 1}: lower the learning_rate"
            )
        loss.backward()
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(block.parameters(), settings.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        errors.append(float(error.detach()))
    block.requires_grad_(False)
    part = min(len(keys), len(errors))
    return sum(errors[:part]) / max(part, 1), sum(errors[-part:]) / max(part, 1)


def relative_error(found: Tensor, wanted: Tensor, counts: Tensor | None) -> Tensor:
    """The squared error of hidden states (B, T, d) over the mean square of what is wanted, of the tokens that count.

    Each token's error is taken over its own mean square: of tokens with massive activations (the first of a text), the
    plain one would see nothing else.
    """
    found, wanted = found.float(), wanted.float()
    each = (found - wanted).square().mean(-1) / wanted.square().mean(-1).clamp_min(1e-12)
    if counts is None:
        return each.mean()
    counts = counts.to(each)
    return (each * counts).sum() / counts.sum().clamp_min(1)

"""Everything that a resumed run must find again, as named tensors and a position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.runtime.modules import fixed_tensors
from abridged.training.workspace import Workspace

_ADAM = ("step", "exp_avg", "exp_avg_sq")
_POSITION = ("step", "rate_scale", "best", "best_step")


class TrainingState:
    """Position, weights and optimiser of one stage; the workspace keeps what `save` writes.

    Attributes:
        step: optimiser steps done.
        rate_scale: factor of every learning rate; lowered when the loss was not finite.
        best: the lowest rank (see `Measurement`) of what is watched so far.
        best_step: where that was.
        saved_step: step of the checkpoint on disk.
    """

    def __init__(self, stage: int, system: nn.Module, optimizer: torch.optim.Optimizer, work: Workspace) -> None:
        self.stage, self.system, self.optimizer, self.work = stage, system, optimizer, work
        self.step, self.rate_scale, self.best, self.best_step, self.saved_step = 0, 1.0, math.inf, 0, 0
        names = {id(p): name for name, p in system.named_parameters()}
        self._names = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def save(self) -> None:
        """Write the state; only the main process does."""
        if self.work.main:
            position = {name: getattr(self, name) for name in _POSITION}
            self.work.save_state(self._tensors(), {"stage": self.stage, **position})
        self.saved_step = self.step

    def load(self) -> bool:
        """Take up the state last saved for this stage; False when there is none.

        Raises:
            AbridgedError: it is damaged, or is of another model.
        """
        found = self.work.load_state()
        if found is None or found[1]["stage"] != self.stage:
            return False
        tensors, position = found
        load_into(self.system, {k.removeprefix("system."): v for k, v in tensors.items() if k.startswith("system.")})
        packed = self.optimizer.state_dict()
        held = [
            {kind: tensors[f"optimizer.{kind}.{name}"] for kind in _ADAM if f"optimizer.{kind}.{name}" in tensors}
            for name in self._names
        ]
        packed["state"] = {i: entries for i, entries in enumerate(held) if entries}
        self.optimizer.load_state_dict(packed)
        for name in _POSITION:
            setattr(self, name, position[name])
        self.saved_step = self.step
        return True

    def save_best(self) -> None:
        """Keep the weights as the best so far; only the main process does."""
        self.work.save_best(self.stage, on_host(unique_state(self.system)))

    def load_best(self) -> None:
        """Go back to the best weights, if any were kept."""
        best = self.work.load_best(self.stage)
        if best is not None:
            load_into(self.system, best)

    def _tensors(self) -> dict[str, Tensor]:
        held = {f"system.{name}": value for name, value in unique_state(self.system).items()}
        state = self.optimizer.state_dict()["state"]
        for i, name in enumerate(self._names):
            for kind, value in state.get(i, {}).items():
                held[f"optimizer.{kind}.{name}"] = torch.as_tensor(value)
        return on_host(held)


def unique_state(system: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor once, under the first of its names; without what lies on disk anyway, and
    what packed modules hold, which whoever goes on with a run has."""
    seen = fixed_tensors(system)
    unique = {}
    for name, value in system.state_dict(keep_vars=True).items():
        if id(value) not in seen and not value.is_meta:
            seen.add(id(value))
            unique[name] = value
    return unique


def on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a file holds them: on the CPU, contiguous; no copy where they are so already."""
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def load_into(system: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `unique_state` gave.

    Raises:
        AbridgedError: the tensors are of another model.
    """
    missing = unique_state(system).keys() - tensors.keys()
    if missing:
        raise AbridgedError(f"the training checkpoint lacks {min(missing)}: begin anew with --overwrite")
    try:
        system.load_state_dict(tensors, strict=False)  # aliases of what is shared are not among them
    except RuntimeError as error:
        raise AbridgedError("the training checkpoint is of another model: begin anew with --overwrite") from error

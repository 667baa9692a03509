"""Whether a model can be gone through block by block, tried on a small random one of its class and config."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from abridged import families
from abridged.core.errors import AbridgedError
from abridged.families.small import small_model
from abridged.families.standin import inputs_of
from abridged.models.streamed import ELSE
from abridged.training.gates import TOLERANCE, answers, difference
from abridged.training.runners.passes import as_output, as_tensors, run_to, standing_in


def rehearse(kind: type, config: Any) -> set[str]:
    """The paths of the modules outside of blocks that are called before the first block.

    Raises:
        AbridgedError: with kept outputs in the places of blocks, the model's answers are others; or its blocks are not
            called one after the other, each once.
    """
    with torch.random.fork_rng():
        model = small_model(kind, config)
        try:
            called, worst = _try(model)
        except AbridgedError as error:
            why = str(error)
        except Exception as error:  # whatever a model makes of outputs that are not its own
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if worst <= TOLERANCE:
                return called
            why = f"with their outputs put in their places its answers change by {worst:.1g} standard deviations"
    raise AbridgedError(f"the blocks of models of type {config.model_type} cannot be run alone ({why}): {ELSE}")


@torch.no_grad()
def _try(model: Any) -> tuple[set[str], float]:
    inputs, blocks = inputs_of(model), families.view(model).blocks
    order: list[str] = []
    before: set[str] = set()

    def note(path: str, module: Any, given: Any) -> None:
        if path in blocks:
            order.append(path)
        elif not order:
            before.add(path)

    hooks = [module.register_forward_pre_hook(partial(note, path)) for path, module in model.named_modules()]
    wanted = answers(model, inputs)
    for hook in hooks:
        hook.remove()
    if order != blocks:
        raise AbridgedError("they are not called one after the other, each once")
    done: dict[str, Any] = {}
    for path in blocks:
        tensors, count = as_tensors(run_to(model, path, inputs, done))
        output = as_output({name: tensor.clone() for name, tensor in tensors.items()}, count)
        stack = path.rpartition(".")[0]
        done = {other: output if other.rpartition(".")[0] == stack else kept for other, kept in done.items()}
        done[path] = output
    with standing_in(model, done):
        return before, difference(answers(model, inputs), wanted)

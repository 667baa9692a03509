"""Passes of a model that stop at one of its blocks, with kept outputs in the places of the blocks before it.

A pass is always the model's own: whatever it does between blocks (masks, positions, an encoder's norm, T5's biases)
happens as ever, so that nothing need be known of what blocks are called with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError


class _Ended(Exception):
    """The block that was asked for has answered: what comes after it in the pass is of no use."""


def run_to(model: Any, path: str | None, inputs: dict[str, Any], done: Mapping[str, Any]) -> Any:
    """What the block at `path` puts out; None: what the model does, all of whose blocks are done.

    inputs: of the model. done: {block: what stands for its output}, the same for all blocks of a list.
    Raises AbridgedError where the pass does not come to the block.
    """
    found: list[Any] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        found.append(output)
        raise _Ended

    hook = None if path is None else model.get_submodule(path).register_forward_hook(keep)
    try:
        with standing_in(model, done), suppress(_Ended):
            output = model(**inputs, use_cache=False)
            if path is None:
                return output
    finally:
        if hook is not None:
            hook.remove()
    if not found:
        raise AbridgedError(f"a pass of the model does not come to its block {path}")
    return found[0]


@contextmanager
def standing_in(model: nn.Module, done: Mapping[str, Any]) -> Iterator[None]:
    """Within, blocks answer with what stands for their outputs, whatever they are called with."""
    blocks = [(model.get_submodule(path), output) for path, output in done.items()]
    for block, output in blocks:
        block.forward = lambda *given, output=output, **named: output
    try:
        yield
    finally:
        for block, _ in blocks:
            del block.forward


@contextmanager
def lent(model: Any, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within, other modules stand in the places of the model's own."""
    own = {path: model.get_submodule(path) for path in modules}
    for path, module in modules.items():
        model.set_submodule(path, module)
    try:
        yield
    finally:
        for path, module in own.items():
            model.set_submodule(path, module)


@contextmanager
def unchanged(model: Any, names: Iterable[str]) -> Iterator[None]:
    """What is changed within of parameters and buffers is afterwards what it was."""
    state = model.state_dict()
    before = {name: state[name].clone() for name in names if not state[name].is_meta}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                state[name].copy_(value)


def as_tensors(output: Any) -> tuple[dict[str, Tensor], int | None]:
    """A block's output as named tensors and how many things it was; None of one that is a tensor itself.

    Raises AbridgedError for another output: nothing could stand for it.
    """
    if isinstance(output, Tensor):
        return {"0": output.contiguous()}, None
    if type(output) in (tuple, list) and all(isinstance(one, Tensor) or one is None for one in output):
        return {str(i): one.contiguous() for i, one in enumerate(output) if one is not None}, len(output)
    raise AbridgedError(f"a block puts out a {type(output).__name__}")


def as_output(tensors: Mapping[str, Tensor], count: int | None) -> Any:
    """The reverse of `as_tensors`."""
    return tensors["0"] if count is None else tuple(tensors.get(str(i)) for i in range(count))


def hidden_of(output: Any) -> Tensor:
    """The hidden states (…, d) that a block puts out."""
    return output if isinstance(output, Tensor) else output[0]

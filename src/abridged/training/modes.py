"""Modes of a model in training that its config does not save."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from abridged.runtime.fused import function_of, is_plain
from abridged.runtime.modules import fixed_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from abridged.storage.view import View

Model = TypeVar("Model", bound=torch.nn.Module)


def make_trainable(model: Model) -> Model:
    """Let all of a model be trained, but what its class makes itself and never saves (Marian's tables of sines), and
    what packed modules hold."""
    made, fixed = getattr(model, "_keys_to_ignore_on_save", None) or (), fixed_tensors(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in made and id(parameter) not in fixed)
    return model


@torch.no_grad()
def hold_in_bf16(teacher: "PreTrainedModel", view: "View") -> None:
    """Round the matrices of a model that is not trained to bf16, in place; embeddings, and heads tied to them, stay.

    Where matrix products are in bf16 (see `processes.autocast`) their weights are rounded so at each of them: the model
    answers the same to the bit, from half the memory, and without rounding anew.
    """
    for matrix in view.matrices:
        if matrix.kind == "linear":
            weight = teacher.get_submodule(matrix.name).get_parameter("weight")
            weight.data = weight.data.to(torch.bfloat16)
    for tensor in (*teacher.parameters(), *teacher.buffers()):
        if tensor.dtype != torch.bfloat16:  # one that lies in the mapped file would keep all of it in memory
            tensor.data = tensor.data.clone()


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set every dropout of a model, attention's included, without changing the config that is saved."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def set_checkpointing(model: "PreTrainedModel", enabled: bool, **settings: Any) -> None:
    """Recompute activations in the backward pass, or keep them. settings: those of `torch.utils.checkpoint`."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    given = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False, **settings}} if settings else {}
    getattr(model, f"{kind}_checkpointing_{'enable' if enabled else 'disable'}")(**given)


@contextmanager
def gelus_in_one_step(model: torch.nn.Module) -> Iterator[None]:
    """Within, each GELU of a model is torch's own, of which a pass keeps the input alone: some models' are made of five
    products, each of which is kept, and is as large as the widest layer."""
    approximations = {"gelu_tanh": "tanh", "gelu": "none"}
    found = {name: module for name, module in model.named_modules(remove_duplicate=False) if is_plain(module)}
    found = {n: m for n, m in found.items() if not isinstance(m, torch.nn.GELU) and function_of(m) in approximations}
    for name, module in found.items():
        model.set_submodule(name, torch.nn.GELU(approximations[str(function_of(module))]).train(module.training))
    try:
        yield
    finally:
        for name, module in found.items():
            model.set_submodule(name, module)

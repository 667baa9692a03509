"""Gives a stock model the sizes that it was cut to, before its weights load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.core.errors import AbridgedError
from abridged.families.heads import head_width, set_heads
from abridged.families.layout import size_of
from abridged.runtime.removed import NoAttention, NoMatrix
from abridged.storage.compressed import record
from abridged.storage.shapes import ShapesSpec


def resize(model: Any, shapes: ShapesSpec) -> None:
    """Give the modules of a stock model empty weights of the sizes in `shapes`, and take out what is removed.

    Raises AbridgedError where the model has no such module, one of another kind, or a smaller one.
    """
    for path in shapes.removed:
        remove(model, path)
    for path, size in shapes.sizes.items():
        module: Any = find(model, path)
        stock = size_of(module)
        if stock is None or len(stock) != len(size):
            raise AbridgedError(f"quantization_config: {path} is a {type(module).__name__}, which has no such size")
        if any(new > old for new, old in zip(size, stock, strict=True)):
            raise AbridgedError(f"quantization_config: {path} is {_text(size)}, config.json makes it {_text(stock)}")
        like = module.weight
        stored = size[::-1] if isinstance(module, Conv1D) else size
        bias = None if getattr(module, "bias", None) is None else torch.empty(size[0], device=like.device)
        set_weight(module, torch.empty(stored, device=like.device), bias)
    for path, heads in shapes.heads.items():
        set_heads(find(model, path), heads, path)
    record(model, shapes=shapes)


def find(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`; AbridgedError if there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise AbridgedError(f"quantization_config: the model has no module {path}") from None


def set_weight(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Put other parameters, as they are stored, into a matrix or a norm, which then says of itself that size.

    A weight that is a parameter already is shared with whoever else has it.
    """
    given = isinstance(weight, nn.Parameter)
    module.weight = weight if given else nn.Parameter(weight.to(module.weight.dtype), module.weight.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(module.bias.dtype), requires_grad=module.bias.requires_grad)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)


def remove(model: nn.Module, path: str) -> None:
    """Put what adds nothing in place of a linear layer or an attention module; AbridgedError for anything else."""
    old: Any = find(model, path)
    new: nn.Module
    if isinstance(old, (nn.Linear, Conv1D)):
        new = NoMatrix()
    elif head_width(old) is not None:
        new = NoAttention(getattr(old, "layer_idx", None))
    elif isinstance(old, (NoMatrix, NoAttention)):
        return
    else:
        raise AbridgedError(f"quantization_config: {path} is a {type(old).__name__}, which cannot be taken out")
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))

"""Adapters folded into the codes beside which they were trained: rounded anew, with errors that make up for each other.

What an adapter adds to a weight of few bits is less than half a step, so that rounding to nearest would leave nearly
every code as it was. So columns are rounded one after another as in GPTQ (Frantar et al., arXiv:2210.17323, section 3),
each passing its error on to the next: scales and zero points stay, and codes move where errors have come together.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from abridged.methods.lockstep import View, in_lockstep
from abridged.methods.quantization.gptq import Inputs
from abridged.runtime.adapters import adapted
from abridged.runtime.modules import fixed_tensors
from abridged.storage.code_books import CODE_BOOKS
from abridged.storage.packing import level_dtype, pack

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate
    from abridged.runtime.weight import PackedWeight

#: Columns whose errors are passed on to the rest together.
_BLOCK = 128


@torch.no_grad()
def fold(model: Any, calibrate: Calibrate) -> Any:
    """Round a packed model's adapters into its codes, in place, and take them away; returns the model.

    Each layer makes up for what those before it have lost (see `in_lockstep`); without adapters codes stay. Norms and
    biases are rounded to the type that they are stored in.
    """
    layers = adapted(model)
    last: list[Any] = [None, None]  # what was met, and what was made of it, which others may read too

    def take(path: str, hessian: Tensor, crossed: Tensor | None) -> None:
        if last[0] is not hessian:
            last[:] = [None, None]
            last[:] = hessian, Inputs(hessian, crossed, path)
        layer = layers[path]
        layer.base_layer.codes.data = rounded_anew(layer.base_layer.packed, layer.merged_weight(), last[1])
        layer.lora_B["default"].get_parameter("weight").zero_()  # the pass goes on with the codes alone

    views: dict[str, tuple[View, View]]
    views = {path: (layer.prepared_inputs, layer.prepared_inputs) for path, layer in layers.items()}  # both round them
    if layers:
        in_lockstep(model, copy.deepcopy(model).eval(), [*layers], calibrate, take, "folding", views=views)
    for path, layer in layers.items():
        model.set_submodule(path, layer.base_layer)
    dtype = getattr(torch, model.hf_quantizer.spec.unquantized_dtype)
    fixed = fixed_tensors(model)
    for parameter in model.parameters():
        if parameter.ndim < 2 and id(parameter) not in fixed:
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    return model


def rounded_anew(weight: PackedWeight, target: Tensor, inputs: Inputs) -> Tensor:
    """Codes (bytes,) for a matrix (rows, columns), with the scales and zero points of `weight`."""
    storage, order, upper = weight.storage, inputs.order, inputs.upper
    book = CODE_BOOKS[storage.code_book]
    low, step, top = book[0], book[1] - book[0], len(book) - 1
    zeros = weight.row_zeros()

    def spread(by_row: Tensor) -> Tensor:  # (rows, k) to (columns, rows)
        return by_row.repeat_interleave(storage.columns // by_row.shape[1], 1).t()[order]

    scale = spread(weight.row_scales())
    zero = torch.zeros_like(scale) if zeros is None else spread(zeros)
    left = inputs.made_up(target).t()[order]  # what is still to be rounded
    levels = torch.empty_like(left)
    for start in range(0, storage.columns, _BLOCK):
        part = slice(start, min(start + _BLOCK, storage.columns))
        block, triangle = left[part], upper[part, part]
        errors = torch.empty_like(block)
        for j, column in enumerate(block):
            units = column / scale[start + j] + zero[start + j]
            levels[start + j] = units.sub_(low).div_(step).round_().clamp_(0, top).mul_(step).add_(low)
            stored = (levels[start + j] - zero[start + j]) * scale[start + j]
            torch.div(column - stored, triangle[j, j], out=errors[j])
            block[j + 1 :].addr_(triangle[j, j + 1 :], errors[j], alpha=-1)
        left[part.stop :].addmm_(upper[part, part.stop :].t(), errors, alpha=-1)
    found = torch.empty(storage.rows, storage.columns, dtype=level_dtype(storage.code_book), device=levels.device)
    found[:, order] = levels.t().to(found.dtype)
    return pack(found, storage.code_book, storage.packing)

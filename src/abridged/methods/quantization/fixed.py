"""Packed matrices while their scales are trained and their codes stay: the end-to-end part of EfficientQAT (Chen et
al., arXiv:2407.11062, section 3.3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.checkpoint.skeleton import packed_modules
from abridged.methods.base import Attached
from abridged.methods.quantization.fake import StoredScale
from abridged.methods.quantization.modules import QuantizedEmbedding, QuantizedLinear
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule
from abridged.runtime.weight import DenseWeight, PackedWeight
from abridged.storage.compressed import Compressed
from abridged.storage.matrix import Storage


class Dequantize(torch.autograd.Function):
    """(codes - zeros) · scales, (rows, columns) FP32, with gradients for the scales. No dense matrix is kept for them:
    they are made of the codes once more."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, scales: Tensor, zeros: Tensor | None, storage: Storage) -> Tensor:
        ctx.save_for_backward(codes, zeros)
        ctx.storage, ctx.count = storage, len(scales)
        return PackedWeight(codes, scales, storage, zeros).dequantize()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, zeros = ctx.saved_tensors
        steps = PackedWeight(codes, grad.new_ones(ctx.count), ctx.storage, zeros).dequantize()
        return None, steps.mul_(grad).view(ctx.count, -1).sum(1), None, None


class FixedCodes(nn.Module):
    """What a `QuantizedWeight` is to a layer, around the codes of a packed module.

    Each scale is what it was times `factor` (num_scales,), which begins at 1, so that one rate fits all, and rounded as
    it will be stored. Codes, zero points, and scales as they were are no part of the state: whoever goes on with a run
    has them.
    """

    codes: Tensor
    start: Tensor
    zeros: Tensor | None

    def __init__(self, packed: PackedModule) -> None:
        super().__init__()
        self.storage, self.in_half = packed.storage, packed.spec.scale_dtype == "float16"
        self.register_buffer("codes", packed.codes.detach(), persistent=False)
        self.register_buffer("start", packed.scales.detach(), persistent=False)
        self.register_buffer("zeros", None if packed.zeros is None else packed.zeros.detach(), persistent=False)
        self.factor = nn.Parameter(torch.ones_like(self.start))

    def scales(self) -> Tensor:
        """(num_scales,) FP32, as they will be stored."""
        found: Tensor = StoredScale.apply(self.start.abs() * self.factor, self.in_half)
        return found.copysign(self.start)  # q2_0's may be negative

    def forward(self) -> Tensor:
        """The weight (rows, columns) FP32."""
        found: Tensor = Dequantize.apply(self.codes, self.scales(), self.zeros, self.storage)
        return found

    def rows(self, index: Tensor) -> Tensor:
        """The rows of `index` (any shape), (*index.shape, columns) FP32; no others are read."""
        storage, scales = self.storage, self.scales()
        steps = PackedWeight(self.codes, torch.ones_like(self.start), storage, self.zeros).rows(index)
        if storage.num_scales >= storage.rows:
            own = F.embedding(index, scales.view(storage.rows, -1))
        else:
            own = F.embedding(index // (storage.rows // storage.num_scales), scales.view(-1, 1))
        return (steps.view(*own.shape, -1) * own.unsqueeze(-1)).view_as(steps)

    @property
    def weight(self) -> Tensor:
        """(rows, columns) FP32, made when somebody reads its values."""
        return DenseWeight(self.forward, (self.storage.rows, self.storage.columns), torch.float32, self.codes.device)


class ScalesAlone(Attached):
    """Trains the scales of a packed model and its vectors (norms, biases); codes, zero points and all else stay.

    While it is at work, layers that can be trained stand in the places of the packed ones, which get the scales in the
    end.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.requires_grad_(False)
        self.packed = packed_modules(model)
        sources = {id(module.codes): FixedCodes(module) for module in self.packed.values()}  # one of tied modules
        for path, module in self.packed.items():
            model.set_submodule(path, trainable(module, sources[id(module.codes)]).train(module.training))
        scales = {id(source.factor) for source in sources.values()}
        self.vectors = [one for one in model.parameters() if one.ndim < 2 and id(one) not in scales]
        for vector in self.vectors:
            vector.requires_grad_(True)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The scales, as shares of what they were ("scale")."""
        return {"scale": [module.factor for module in self.model.modules() if isinstance(module, FixedCodes)]}

    @torch.no_grad()
    def finish(self) -> Compressed:
        """Put the packed modules back with the scales that were found, and round vectors to the type they are stored
        in."""
        found = super().finish()
        dtype = getattr(torch, found.unquantized_dtype or "float32")
        for vector in self.vectors:
            vector.copy_(vector.to(dtype))
        for path, module in self.packed.items():
            source: Any = self.model.get_submodule(path).source
            module.to(source.codes.device).scales.data = source.scales().detach()
            self.model.set_submodule(path, module)
        self.model.requires_grad_(False)
        return found


def trainable(module: PackedModule, source: Any) -> nn.Module:
    """The layer or embedding that a packed one becomes; of its input, GELU where the packed one does it, too."""
    if isinstance(module, PackedEmbedding):
        return QuantizedEmbedding(source, module)
    assert isinstance(module, PackedLinear)
    rounding: nn.Module | None = module.input_quantizer
    if rounding is not None and module.input_function != "identity":
        gelu = nn.GELU("tanh" if module.input_function == "gelu_tanh" else "none")
        rounding = nn.Sequential(gelu, rounding)
    return QuantizedLinear(source, module.bias, rounding)

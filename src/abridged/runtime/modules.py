"""Linear layer and embedding that keep their weights packed and unpack them at each use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abridged.runtime import ops
from abridged.runtime.activations import DynamicActivation, StaticActivation, build_activation

if TYPE_CHECKING:
    from abridged.checkpoint.format import ActivationSpec, EmbeddingSpec, LinearSpec, MatrixSpec


def build_input_quantizer(spec: ActivationSpec) -> StaticActivation | DynamicActivation:
    """An activation quantiser whose scale is FP32, whatever the default dtype under which a model is built."""
    return build_activation(spec.model_dump(exclude_none=True)).float()


class PackedModule(nn.Module):
    """What both have: ``weight``, the packed codes (bytes,) uint8, and ``weight_scale`` (num_scales,) FP32.

    The names are those of a stock layer's, so that transformers' initialisation and weight tying work on them, and
    the codes are never of the dense shape, so that a process without abridged fails on them instead of reading
    them as weights.
    """

    def __init__(self, spec: MatrixSpec, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.spec = spec
        codes = torch.empty(spec.packed_bytes, dtype=torch.uint8, device=device)
        scale = torch.empty(spec.num_scales, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)

    @property
    def rows(self) -> int:
        """Output features, or vocabulary entries."""
        return self.spec.rows

    @property
    def storage(self) -> tuple[int, int, str, str]:
        """(rows, columns, code_book, packing), as the ops take them."""
        return self.spec.rows, self.spec.columns, self.spec.code_book, self.spec.packing

    def dequantized(self) -> Tensor:
        """The weight (rows, columns) in FP32."""
        return ops.dequantize(self.weight, self.weight_scale, *self.storage)

    def _apply(self, fn, recurse=True):
        # A cast of the model (.half(), .to(bfloat16)) moves the scale but leaves it in FP32.
        scale = self.weight_scale.data
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != torch.float32:
            self.weight_scale.data = scale.to(self.weight_scale.device)
        return self

    def extra_repr(self) -> str:
        rows, columns, code_book, packing = self.storage
        return f"{rows}x{columns}, {code_book}, packing={packing}, num_scales={self.spec.num_scales}"


class PackedLinear(PackedModule):
    """``y = q(x) W^T + b`` with W packed and q the input's activation quantiser, if there is one."""

    def __init__(self, spec: LinearSpec, device: torch.device | str | None = None) -> None:
        super().__init__(spec, device)
        self.bias: nn.Parameter | None
        if spec.bias:
            self.bias = nn.Parameter(torch.empty(spec.rows, device=device), requires_grad=False)
        else:
            self.register_parameter("bias", None)
        #: A function before this layer that its kernel computes on the way (`ops.INPUT_FUNCTIONS`).
        self.input_function = "identity"
        self.input_quantizer: StaticActivation | DynamicActivation | None = None
        if spec.input is not None:
            self.input_quantizer = build_input_quantizer(spec.input).to(device)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) -> (..., rows), in x's dtype."""
        quantizer = self.input_quantizer
        if quantizer is None:
            x = ops.apply_function(x, self.input_function).to(x.dtype)
            return ops.packed_linear(x, self.weight, self.weight_scale, self.bias, *self.storage)
        quantization = (*quantizer.operands(), quantizer.bits)
        return ops.quantized_linear(
            x, self.weight, self.weight_scale, self.bias, *quantization, *self.storage, self.input_function
        )


class PackedEmbedding(PackedModule):
    """Rows of a packed matrix by id, in the dtype that the model computes in."""

    dtype_like: Tensor

    def __init__(self, spec: EmbeddingSpec, device: torch.device | str | None = None) -> None:
        super().__init__(spec, device)
        # Ids carry no dtype: an empty buffer follows the model's casts and says which one to answer in.
        self.register_buffer("dtype_like", torch.empty(0, device=device), persistent=False)
        #: Multiplies the rows, as in BART.
        self.embed_scale = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) integers -> (..., columns)."""
        rows = ops.packed_embedding(ids, self.weight, self.weight_scale, *self.storage).to(self.dtype_like.dtype)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale

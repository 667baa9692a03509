"""Linear layer and embedding that keep their weights packed and unpack them at each use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.runtime import backends, ops
from abridged.runtime.activations import DynamicActivation, Rounding, StaticActivation, apply_function, build_activation
from abridged.runtime.weight import NO_GRADIENTS, EmbeddingSizes, LinearSizes, PackedWeight, StandIn

if TYPE_CHECKING:
    from abridged.runtime.kernels import Held
    from abridged.storage.format import ActivationSpec, EmbeddingSpec, LinearSpec, MatrixSpec


def build_input_quantizer(spec: ActivationSpec) -> StaticActivation | DynamicActivation:
    """An activation quantiser whose scale is FP32, whatever the default dtype under which a model is built."""
    return build_activation(spec.model_dump(exclude_none=True)).float()


class PackedModule(StandIn):
    """What both have: ``codes`` (bytes,) uint8, ``scales`` (num_scales,) FP32 and, where the code book has them, packed
    ``zeros`` (bytes,) uint8.

    In a file they go by the names of `storage.format.FILE_NAMES`: ``weight``, as a stock layer's, but never of the
    dense shape, so that a process without abridged fails on the codes instead of reading them as weights.
    """

    def __init__(self, spec: MatrixSpec, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.spec, self.storage = spec, spec.storage
        codes = torch.empty(self.storage.packed_bytes, dtype=torch.uint8, device=device)
        scales = torch.empty(spec.num_scales, dtype=torch.float32, device=device)
        # scales come first: libraries take the type of a model's first parameter for that which it computes in
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.zeros: nn.Parameter | None
        if self.storage.zero_bytes:
            zeros = torch.empty(self.storage.zero_bytes, dtype=torch.uint8, device=device)
            self.zeros = nn.Parameter(zeros, requires_grad=False)
        else:
            self.register_parameter("zeros", None)
        #: What the model computes in; it follows the model's casts.
        self.dtype = torch.get_default_dtype()
        self._handles = backends.Handles()

    @property
    def rows(self) -> int:
        return self.storage.rows

    @property
    def columns(self) -> int:
        return self.storage.columns

    @property
    def packed(self) -> PackedWeight:
        """Codes, scales, zero points and how they lie."""
        found = self._parameters
        return PackedWeight(found["codes"], found["scales"], self.storage, found["zeros"])  # type: ignore[arg-type]

    def held(self) -> Held:
        """The weight as the compiled kernels take it, made once for as long as nobody moves it."""
        made: Held = self._handles.of(backends.CPU, self.packed)
        return made

    def dequantized(self) -> Tensor:
        """The weight (rows, columns) in FP32."""
        return self.packed.dequantize()

    def like(self) -> tuple[torch.dtype, torch.device]:
        return self.dtype, self.codes.device

    def _apply(self, fn, recurse=True):
        # A cast of the model (.half(), .to(bfloat16)) moves the scales but leaves them in FP32.
        scales = self.scales.data
        super()._apply(fn, recurse)
        if self.scales.dtype != torch.float32:
            self.scales.data = scales.to(self.scales.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        s = self.storage
        return f"{s.rows}x{s.columns}, {s.code_book}, packing={s.packing}, num_scales={s.num_scales}"

    def requires_grad_(self, requires_grad: bool = True) -> PackedModule:
        """Raises AbridgedError where gradients are asked for: codes have none, nor have scales."""
        if requires_grad:
            raise AbridgedError(NO_GRADIENTS)
        super().requires_grad_(False)
        return self


def fixed_tensors(model: nn.Module) -> set[int]:
    """The ids of what a model's packed modules hold and never learn: codes, scales and zero points."""
    packed = (module for module in model.modules() if isinstance(module, PackedModule))
    return {id(tensor) for module in packed for tensor in module.packed.tensors if tensor is not None}


class PackedLinear(LinearSizes, PackedModule):
    """``y = q(x) W^T + b`` with W packed and q the input's activation quantiser, if there is one."""

    def __init__(self, spec: LinearSpec, device: torch.device | str | None = None) -> None:
        super().__init__(spec, device)
        self.bias: nn.Parameter | None
        if spec.bias:
            self.bias = nn.Parameter(torch.empty(spec.rows, device=device), requires_grad=False)
        else:
            self.register_parameter("bias", None)
        #: A function before this layer that its kernel computes on the way (`activations.INPUT_FUNCTIONS`).
        self.input_function = "identity"
        self.input_quantizer: StaticActivation | DynamicActivation | None = None
        if spec.input is not None:
            self.input_quantizer = build_input_quantizer(spec.input).to(device)

    def rounding(self) -> Rounding | None:
        """How the input is rounded."""
        quantizer = self.input_quantizer
        return None if quantizer is None else quantizer.rounding()

    def prepared_inputs(self, x: Tensor) -> Tensor:
        """x (..., columns) as it meets the weight: rounded, straight through for gradients."""
        x = apply_function(x, self.input_function)
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def prepared_weight(self) -> PackedWeight:
        """What a loss over the vocabulary, which makes logits a chunk at a time, multiplies by."""
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns) -> (..., rows), in x's dtype."""
        weight, bias, rounding = self.packed, self._parameters["bias"], self.rounding()
        if not backends.is_plain(x):
            return ops.linear(weight, x, bias, rounding, self.input_function)
        backend = backends.choose(weight, x, rounding)
        return backend.linear(self._handles.of(backend, weight), x, bias, rounding, self.input_function)


class PackedEmbedding(EmbeddingSizes, PackedModule):
    """Rows of a packed matrix by id, in the dtype that the model computes in."""

    def __init__(self, spec: EmbeddingSpec, device: torch.device | str | None = None) -> None:
        super().__init__(spec, device)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (...) integers -> (..., columns)."""
        weight = self.packed
        if backends.is_plain(ids):
            backend = backends.choose(weight, ids)
            rows = backend.embedding(self._handles.of(backend, weight), ids)
        else:
            rows = ops.embedding(weight, ids)
        rows = rows.to(self.dtype)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale

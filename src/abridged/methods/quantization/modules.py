"""The modules that a student carries while it is trained, in place of its linear layers and embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from abridged.errors import AbridgedError
from abridged.methods.quantization.quantizers import build_quantizer
from abridged.methods.quantization.settings import WeightSettings


@dataclass(frozen=True)
class StoredWeight:
    """A quantised matrix: weight = level * scale, a scale for each run of rows * columns / num_scales elements."""

    levels: Tensor  # (rows, columns) int8
    scale: Tensor  # (num_scales,) float32, rounded to scale_dtype
    code_book: str
    packing: str
    scale_dtype: str


def count_scales(rows: int, columns: int, fused: int, settings: WeightSettings) -> int:
    """Scales of a matrix (rows, columns). Raises AbridgedError where groups do not divide a row."""
    if settings.granularity == "tensor":
        return fused
    if settings.granularity == "row":
        return rows
    assert settings.group_size is not None
    if columns % settings.group_size:
        raise AbridgedError(f"group_size {settings.group_size} does not divide the {columns} columns of a matrix")
    return rows * columns // settings.group_size


class QuantizedWeight(nn.Module):
    """A master weight (rows, columns) in FP32 and its quantiser; `name` is for messages."""

    def __init__(self, weight: Tensor, fused: int, settings: WeightSettings, name: str) -> None:
        super().__init__()
        self.name, self.fused = name, fused
        self.weight = nn.Parameter(weight.detach().to(torch.float32).contiguous())
        self.install(settings)

    @torch.no_grad()
    def install(self, settings: WeightSettings) -> bool:
        """Quantise by these settings from now on, starting from the master weight as it is.

        What was learned about the scale is kept where the settings stay the same; returns whether they did not.
        """
        self.check_finite()
        if getattr(self, "settings", None) == settings:
            return False
        self.settings = settings
        self.num_scales = count_scales(self.weight.shape[0], self.weight.shape[1], self.fused, settings)
        self.refit()
        return True

    @torch.no_grad()
    def refit(self) -> None:
        """Forget what was learned about the scale: it starts anew from the master weight as it is."""
        self.quantizer = build_quantizer(self.settings, self._lines(), self.fused)

    def check_finite(self) -> None:
        """Raise AbridgedError where the weight holds NaN or infinity."""
        if not bool(torch.isfinite(self.weight).all()):
            raise AbridgedError(f"the weights of {self.name} are not all finite (NaN or infinity)")

    def _lines(self) -> Tensor:
        return self.weight.view(self.num_scales, -1)

    def forward(self) -> Tensor:
        """The fake-quantised weight, (rows, columns) FP32."""
        return self.quantizer(self._lines()).view_as(self.weight)

    def rows(self, index: Tensor) -> Tensor:
        """The fake-quantised rows of `index` (any shape), (*index.shape, columns): the values `forward` has there."""
        columns = self.weight.shape[1]
        gathered = nn.functional.embedding(index, self.weight)
        if self.settings.granularity == "tensor":
            lines, fit = gathered.view(1, -1), self.quantizer.fit(self._lines())
        else:
            per_row = self.num_scales // self.weight.shape[0]
            lines = gathered.view(-1, columns // per_row)
            offsets = torch.arange(per_row, device=index.device)
            fit = self.quantizer.fit(lines, (index.reshape(-1, 1) * per_row + offsets).flatten())
        return self.quantizer(lines, fit).view_as(gathered)

    def stored(self) -> StoredWeight:
        """What a checkpoint keeps. Raises AbridgedError where the weight is not finite."""
        self.check_finite()
        levels, scale = self.quantizer.levels(self._lines())
        settings = self.settings
        code_book = self.quantizer.grid.code_book
        return StoredWeight(
            levels.view_as(self.weight), scale.float(), code_book, settings.packing, settings.scale_dtype
        )

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, num_scales={self.num_scales}"


class QuantizedLinear(nn.Module):
    """y = quantised(x) @ quantised(weight).T + bias."""

    bias: nn.Parameter | None

    def __init__(self, source: QuantizedWeight, bias: nn.Parameter | None, input_quantizer: nn.Module | None) -> None:
        super().__init__()
        self.source, self.input_quantizer = source, input_quantizer
        self.register_parameter("bias", bias)

    def prepared_inputs(self, x: Tensor) -> Tensor:
        """x (..., columns), quantised where activations are."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def prepared_weight(self) -> Tensor:
        """The fake-quantised weight (rows, columns) FP32."""
        return self.source()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., rows)."""
        return nn.functional.linear(self.prepared_inputs(x), self.prepared_weight(), self.bias)


class QuantizedEmbedding(nn.Module):
    """Looks ids up in a quantised matrix, quantising only the rows it needs; times `embed_scale`, as in BART."""

    def __init__(self, source: QuantizedWeight, embed_scale: float = 1.0) -> None:
        super().__init__()
        self.source, self.embed_scale = source, embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 to (..., columns)."""
        rows = self.source.rows(ids)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale

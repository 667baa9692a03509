"""The modules that a student carries while it is trained, in place of its linear layers and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.methods.quantization.fake import (
    FakeQuantize,
    FakeQuantizeAffine,
    StoredScale,
    round_affine_,
    round_to_levels_,
)
from abridged.methods.quantization.quantizers import QUANTIZERS, at
from abridged.methods.quantization.settings import WeightSettings
from abridged.runtime.weight import EmbeddingSizes, LinearSizes
from abridged.storage.matrix import Storage


@dataclass(frozen=True)
class StoredWeight:
    """A quantised matrix: weight = (level - zero) * scale, each for a run of rows * columns / num_scales elements."""

    levels: Tensor  # (rows, columns) int8, or uint8 with zero points
    scale: Tensor  # (num_scales,) float32, rounded to scale_dtype
    zero: Tensor | None  # (num_scales,) float32, whole; None on a grid around 0
    code_book: str
    packing: str
    scale_dtype: str


def count_scales(rows: int, columns: int, fused: int, settings: WeightSettings) -> int:
    """Scales of a matrix (rows, columns). Raises AbridgedError where groups do not divide a row."""
    if settings.granularity == "per_tensor":
        return fused
    if settings.granularity == "per_channel":
        return rows
    assert settings.group_size is not None
    if columns % settings.group_size:
        wrong = f"group_size {settings.group_size} does not divide the {columns} columns of a matrix"
        raise AbridgedError(f"{wrong}: take one that does, or granularity: per_channel")
    return rows * columns // settings.group_size


class Fit(NamedTuple):
    """How lines are quantised; each (num_scales, 1)."""

    scale: Tensor
    step: Tensor | None = None  # what weights are divided by, where it is not the scale
    center: Tensor | None = None
    zero: Tensor | None = None  # the level that stands for 0, on an affine grid


class FakeQuantizer(nn.Module):
    """Quantises lines of weights (num_scales, elements) with a scale for each, by the rule that the settings name.

    What the rule learns are this module's parameters. `fit` gives what the rounding needs, `forward` the
    fake-quantised lines, `levels` the integers that are stored.
    """

    fixed_scale: Tensor | None
    fixed_zero: Tensor | None

    def __init__(self, settings: WeightSettings, lines: Tensor, fused: int, importance: Tensor | None = None) -> None:
        """For the lines of a weight that fuses `fused` matrices; `importance`, like the lines, weights their errors."""
        super().__init__()
        self.settings = settings
        self.quantizer = QUANTIZERS[settings.quantizer](settings, lines, fused)
        self.grid = self.quantizer.grid
        self.gradients = settings.clips_weight_gradient, settings.full_scale_gradient
        for name, start in self.quantizer.parameters(lines, importance).items():
            self.register_parameter(name, nn.Parameter(start))
        # of a rule that learns nothing, once weights were rounded to a grid that they shall keep
        self.register_buffer("fixed_scale", None)
        self.register_buffer("fixed_zero", None)

    def fit(self, weight: Tensor, index: Tensor | None = None) -> Fit:
        """What `forward` needs to quantise these lines (or, given the whole matrix's lines, any part of it).

        `index` (lines,) says which of the matrix's lines these are; None: all of them.
        """
        with torch.no_grad():
            fixed = weight.detach()
            center = fixed.mean(1, keepdim=True) if self.settings.centered else None
            if center is not None:
                fixed = fixed - center
        if self.fixed_scale is None:
            scale, step = self.quantizer.rule(self._parameters, fixed, index)  # type: ignore[arg-type]
        else:
            scale, step = at(self.fixed_scale, index), None
        scale, zero = StoredScale.apply(scale, self.settings.scale_dtype == "float16"), None
        if self.fixed_zero is not None:
            zero = at(self.fixed_zero, index)
        elif self.grid.kind == "affine":
            zero = self.quantizer.zero(self._parameters, fixed, scale, index)  # type: ignore[arg-type]
        return Fit(scale, step, center, zero)

    def forward(self, weight: Tensor, fit: Fit | None = None) -> Tensor:
        """Fake-quantise lines (num_scales, elements): exactly as they are stored, with the settings' gradients."""
        scale, step, center, zero = self.fit(weight) if fit is None else fit
        grid = self.grid
        if zero is not None:
            return FakeQuantizeAffine.apply(weight, scale, zero, grid.top, *self.gradients)
        return FakeQuantize.apply(
            weight, scale, step, center, grid.top, grid.kind == "odd", grid.bound, *self.gradients
        )

    @torch.no_grad()
    def levels(self, weight: Tensor, fit: Fit | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The levels (num_scales, elements) in 8 bits, scales and zero points (num_scales,) FP32 that `forward` has."""
        scale, step, center, zero = self.fit(weight) if fit is None else fit
        if zero is not None:
            levels = round_affine_(weight / scale, zero, self.grid.top)
            if self.grid.code_book != "q2_0":
                return levels.to(torch.uint8), scale.flatten(), zero.flatten()
            sign = 3.0 - 2.0 * zero  # -2 … 1 are -1 … 2 of a negative scale
            return levels.sub_(zero).mul_(sign).to(torch.int8), (scale * sign).flatten(), None
        lines = weight if center is None else weight - center
        levels = round_to_levels_(lines / (scale if step is None else step), self.grid.top, self.grid.kind == "odd")
        return levels.to(torch.int8), scale.flatten(), None

    @torch.no_grad()
    def take_scale(self, weight: Tensor, scale: Tensor) -> None:
        """Go on from scales (num_scales, 1) for these lines: as nearly as parameters allow, or fixed without any."""
        if not self.quantizer.learned:
            zero = self.fit(weight).zero if self.fixed_zero is None else self.fixed_zero
            self.fixed_scale, self.fixed_zero = scale.clone(), zero
            return
        for name, value in self.quantizer.taken(self._parameters, weight, scale).items():  # type: ignore[arg-type]
            self.get_parameter(name).copy_(value)

    def extra_repr(self) -> str:
        return f"{self.settings.quantizer}, {self.grid.code_book}, {self.settings.granularity}"


class QuantizedWeight(nn.Module):
    """A master weight (rows, columns) in FP32 and its quantiser; `name` is for messages.

    Where rounding is learned, `offset` (rows, columns), in scales, is added before it, and trained instead of the
    weight: AutoRound (Cheng et al., arXiv:2309.05516, section 3).
    """

    quantizer: FakeQuantizer
    offset: nn.Parameter | None

    def __init__(
        self, weight: Tensor, fused: int, settings: WeightSettings, name: str, importance: Tensor | None = None
    ) -> None:
        super().__init__()
        self.name, self.fused = name, fused
        self.weight = nn.Parameter(weight.detach().to(torch.float32).contiguous())
        self.install(settings, importance)

    @torch.no_grad()
    def install(self, settings: WeightSettings, importance: Tensor | None = None) -> bool:
        """Quantise by these settings from now on, starting from the master weight as it is, see `refit`.

        What was learned about the scale is kept where the settings stay the same; returns whether they did not.
        """
        self.check_finite()
        if getattr(self, "settings", None) == settings:
            return False
        if getattr(self, "offset", None) is not None:
            lines = self._lines()
            self.weight.copy_(self._moved(lines, self.quantizer.fit(lines), self.offset).view_as(self.weight))
        self.settings = settings
        self.num_scales = count_scales(self.weight.shape[0], self.weight.shape[1], self.fused, settings)
        self.refit(importance)
        return True

    @torch.no_grad()
    def refit(self, importance: Tensor | None = None) -> None:
        """Forget what was learned about the scale: it starts anew from the master weight as it is.

        `importance`, of a shape that spreads to (rows, columns), weights squared errors for `initialization: weighted`.
        """
        lines = self._lines()
        if self.settings.initialization != "weighted":
            importance = None
        if importance is not None:
            importance = importance.to(lines).expand_as(self.weight).reshape_as(lines)
        self.quantizer = FakeQuantizer(self.settings, lines, self.fused, importance)
        learned = self.settings.rounding == "learned"
        self.register_parameter("offset", nn.Parameter(torch.zeros_like(self.weight)) if learned else None)

    def check_finite(self) -> None:
        """Raise AbridgedError where the weight holds NaN or infinity."""
        if not self.weight.is_meta and not bool(torch.isfinite(self.weight).all()):
            raise AbridgedError(f"the weights of {self.name} are not all finite (NaN or infinity)")

    def _lines(self) -> Tensor:
        return self.weight.view(self.num_scales, -1)

    @staticmethod
    def _moved(lines: Tensor, fit: Fit, offset: Tensor | None) -> Tensor:
        """Lines as they are to be rounded to nearest."""
        if offset is None:
            return lines
        return torch.addcmul(lines.detach(), offset.view_as(lines), fit.scale.detach())

    def forward(self) -> Tensor:
        """The fake-quantised weight, (rows, columns) FP32."""
        lines = self._lines()
        fit = self.quantizer.fit(lines)
        return self.quantizer(self._moved(lines, fit, self.offset), fit).view_as(self.weight)

    def rows(self, index: Tensor) -> Tensor:
        """The fake-quantised rows of `index` (any shape), (*index.shape, columns): the values `forward` has there."""
        columns = self.weight.shape[1]
        gathered = nn.functional.embedding(index, self.weight)
        offset = None if self.offset is None else nn.functional.embedding(index, self.offset)
        if self.settings.granularity == "per_tensor":
            lines, fit = gathered.view(1, -1), self.quantizer.fit(self._lines())
        else:
            per_row = self.num_scales // self.weight.shape[0]
            lines = gathered.view(-1, columns // per_row)
            offsets = torch.arange(per_row, device=index.device)
            fit = self.quantizer.fit(lines, (index.reshape(-1, 1) * per_row + offsets).flatten())
        return self.quantizer(self._moved(lines, fit, offset), fit).view_as(gathered)

    @property
    def storage(self) -> Storage:
        """How it lies where it is stored."""
        rows, columns = self.weight.shape
        return Storage(rows, columns, self.quantizer.grid.code_book, self.settings.packing, self.num_scales)

    def stored(self) -> StoredWeight:
        """What a checkpoint keeps. Raises AbridgedError where the weight is not finite."""
        self.check_finite()
        lines = self._lines()
        fit = self.quantizer.fit(lines)
        levels, scale, zero = self.quantizer.levels(self._moved(lines, fit, self.offset), fit)
        settings = self.settings
        code_book = self.quantizer.grid.code_book
        return StoredWeight(
            levels.view_as(self.weight), scale.float(), zero, code_book, settings.packing, settings.scale_dtype
        )

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, num_scales={self.num_scales}"


class QuantizedLinear(LinearSizes, nn.Module):
    """y = quantised(x) @ quantised(weight).T + bias."""

    bias: nn.Parameter | None

    def __init__(self, source: QuantizedWeight, bias: nn.Parameter | None, input_quantizer: nn.Module | None) -> None:
        super().__init__()
        self.source, self.input_quantizer = source, input_quantizer
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """The master weight (rows, columns)."""
        return self.source.weight

    rows = property(lambda self: self.weight.shape[0])
    columns = property(lambda self: self.weight.shape[1])

    def prepared_inputs(self, x: Tensor) -> Tensor:
        """x (..., columns), quantised where activations are."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def prepared_weight(self) -> Tensor:
        """The fake-quantised weight (rows, columns) FP32."""
        return self.source()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) to (..., rows)."""
        return nn.functional.linear(self.prepared_inputs(x), self.prepared_weight(), self.bias)


class QuantizedEmbedding(EmbeddingSizes, nn.Module):
    """Looks ids up in a quantised matrix, quantising only the rows it needs; times `embed_scale`, as in BART."""

    def __init__(self, source: QuantizedWeight, stock: nn.Module) -> None:
        super().__init__()
        self.source = source
        self.take_settings(stock)

    weight = QuantizedLinear.weight
    rows, columns = QuantizedLinear.rows, QuantizedLinear.columns

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 to (..., columns)."""
        rows = self.source.rows(ids)
        return rows if self.embed_scale == 1.0 else rows * self.embed_scale

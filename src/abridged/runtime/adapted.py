"""Low-rank adapters beside packed matrices, as layers of peft: W + (alpha / rank) BA, of which W stays in its codes.

Imported where peft is there; `injected` says so where it is not.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from abridged.runtime.activations import apply_function
from abridged.runtime.modules import PackedLinear

#: What peft calls an adapter that nobody has named.
NAME = "default"


class AdaptedLinear(nn.Module, LoraLayer):
    """``y = packed(x) + (alpha / rank) B A dropout(x)`` (LoRA, Hu et al., arXiv:2106.09685, section 4.1).

    The packed layer rounds its input, the adapter does not; A (rank, columns) and B (rows, rank) are FP32. Gradients
    for x pass the packed layer by its codes, a slice at a time.
    """

    base_layer: PackedLinear

    def __init__(self, base_layer: PackedLinear, adapter_name: str, config: Any, **kwargs: Any) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config.r, config.lora_alpha, config=config)

    @property
    def weight(self) -> Tensor:
        """The packed matrix, as `PackedLinear.weight` has it; without the adapter."""
        return self.base_layer.weight

    def prepared_inputs(self, x: Tensor) -> Tensor:
        """x (..., columns) as the packed layer rounds it."""
        return self.base_layer.prepared_inputs(x)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (rank, columns), and B (rows, rank) times alpha / rank."""
        return self.lora_A[NAME].get_parameter("weight"), self.lora_B[NAME].get_parameter("weight") * self.scaling[NAME]

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + (alpha / rank) BA (rows, columns) FP32."""
        a, b = self.factors()
        return torch.addmm(self.base_layer.dequantized(), b, a)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., columns) to (..., rows), in the type of the packed layer's answer."""
        y: Tensor = self.base_layer(x)
        given = self.lora_dropout[NAME](apply_function(x, self.base_layer.input_function))
        added = self.lora_B[NAME](self.lora_A[NAME](given.to(self.lora_A[NAME].weight.dtype)))
        return torch.add(y, added.to(y.dtype), alpha=self.scaling[NAME])

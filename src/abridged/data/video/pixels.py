"""Pictures as the pixels that a model reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Squares:
    """Squares whatever the shape was, as BLIP has them, with normalised channels."""

    def __init__(self, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` are of the channels of pixels in 0…1."""
        self.side = side
        self.mean, self.std = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))

    def __call__(self, pictures: np.ndarray) -> Tensor:
        """(T, height, width, 3) uint8 becomes (T, 3, side, side) FP32."""
        found = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        if found.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            found = torch.nn.functional.interpolate(found, size, mode="bicubic", align_corners=False, antialias=True)
        return (found.clamp(0, 1) - self.mean) / self.std

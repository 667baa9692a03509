"""A memory of smoothed vectors, one for each position of a text or each entry of a vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import AbridgedError


class Bank(nn.Module):
    """`rows` vectors of `dimensions` numbers in host memory, q <- m * q + (1 - m) * h at each visit.

    A text has millions of positions, so that a vector is held in 8 bits a number and one scale, and the memory of
    a row is claimed from the system only when it is first visited. Not a buffer: those are broadcast among
    processes at every step, and moved to the accelerator. `state_dict` has the visited rows alone, and
    `load_state_dict` (not a copy into the state's tensors) brings them back exactly.
    """

    def __init__(self, rows: int, dimensions: int) -> None:
        super().__init__()
        try:
            self.levels = torch.empty(rows, dimensions, dtype=torch.int8)  # untouched pages take no memory
            self.scales = torch.zeros(rows)  # 0 = never visited
        except RuntimeError as error:
            raise AbridgedError(
                f"a memory bank of {rows} rows of {dimensions} does not fit into memory: set the contrastive "
                "objective's bank to vocabulary or none"
            ) from error

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (..., D) in FP32, 0 where never visited, and (..., 1) bool whether visited, for rows (...)."""
        places = rows.cpu()
        scales = self.scales[places].unsqueeze(-1)
        vectors = self.levels[places].float() * scales
        return vectors.to(rows.device), (scales > 0).to(rows.device)

    def smooth(self, rows: Tensor, hidden: Tensor, momentum: float) -> Tensor:
        """m * bank + (1 - m) * hidden, (..., D), where a row was visited, else hidden; gradients through hidden."""
        held, visited = self.read(rows)
        return torch.where(visited, momentum * held + (1 - momentum) * hidden, hidden)

    @torch.no_grad()
    def update(self, rows: Tensor, hidden: Tensor, momentum: float) -> None:
        """Takes up hidden (N, D) at rows (N,); a row that occurs more than once takes the mean."""
        unique, inverse, counts = rows.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(unique), hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        means.index_add_(0, inverse, hidden).div_(counts.unsqueeze(-1))
        values = self.smooth(unique, means, momentum).cpu()
        scales = (values.abs().amax(-1) / 127).clamp_min(1e-30).float()
        places = unique.cpu()
        self.levels[places] = (values / scales.unsqueeze(-1)).round().to(torch.int8)
        self.scales[places] = scales

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        rows = self.scales.nonzero().squeeze(-1)
        held = {"rows": rows, "levels": self.levels[rows], "scales": self.scales[rows]}
        destination.update({prefix + name: tensor for name, tensor in held.items()})

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        names = [prefix + name for name in ("rows", "levels", "scales")]
        absent = [name for name in names if name not in state_dict]
        if absent:
            missing_keys.extend(absent)
            return
        rows, levels, scales = (state_dict[name] for name in names)
        if levels.shape[1:] != self.levels.shape[1:] or (len(rows) and int(rows.max()) >= len(self.levels)):
            error_msgs.append(f"{prefix}levels: a memory bank of another size")
            return
        self.scales.zero_()
        self.levels[rows] = levels
        self.scales[rows] = scales

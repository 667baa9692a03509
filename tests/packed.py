"""Random packed matrices."""

import torch

from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS, has_zero_points
from abridged.storage.matrix import Storage
from abridged.storage.packing import level_dtype, pack, pack_zeros

#: Settings of matrices with a scale and a zero point for each 32 neighbours.
GROUPS = {
    "quantizer": "lsq",
    "symmetric": False,
    "granularity": "per_group",
    "group_size": 32,
    "scale_dtype": "float16",
}


def drawn(rows, columns, book, packing, scales, seed=0):
    """(weight, its levels, its values (rows, columns) FP32)."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.tensor(CODE_BOOKS[book], dtype=level_dtype(book))
    levels = known[torch.randint(len(known), (rows, columns), generator=generator)]
    scale = torch.rand(scales, generator=generator) + 0.1
    if book == "q2_0":  # alone may have negative ones
        scale[::2] *= -1
    zeros, zero = None, torch.zeros(scales)
    if has_zero_points(book):
        zero = torch.randint(len(known), (scales,), generator=generator).float()
        zeros = pack_zeros(zero, book, packing)
    weight = PackedWeight(pack(levels, book, packing), scale, Storage(rows, columns, book, packing, scales), zeros)
    values = (levels.float().view(scales, -1) - zero[:, None]) * scale[:, None]
    return weight, levels, values.view(rows, columns)

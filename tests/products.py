"""What a backend's products with packed matrices are compared with, on any device."""

import torch

from abridged.runtime.activations import Rounding
from abridged.runtime.backends import FEW_TOKENS
from abridged.storage.code_books import CODE_BOOKS
from packed import drawn

STORAGES = [(book, "bits") for book in CODE_BOOKS] + [("ternary", "base3")]


def packed_matrix(rows, columns, book, packing, scales, seed=0):
    """(weight, bias) of a random matrix."""
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    return drawn(rows, columns, book, packing, scales, seed)[0], bias


def on(device, weight):
    """The weight on a device."""
    codes, scales, zeros = (None if t is None else t.to(device) for t in weight.tensors)
    return weight._replace(codes=codes, scales=scales, zeros=zeros)


def inputs(kind):
    """What a kind of activation quantiser does; None for inputs that stay as they are."""
    scale = torch.tensor([0.021])
    return {
        "as they are": None,
        "dynamic 8": Rounding(8),
        "dynamic 4": Rounding(4),
        "static 8": Rounding(8, scale),
        "static 4": Rounding(4, scale * 16),
        "asymmetric 8": Rounding(8, scale, torch.tensor([9], dtype=torch.int32)),
        "asymmetric 4": Rounding(4, scale * 16, torch.tensor([3], dtype=torch.int32)),
        "static 1": Rounding(1, scale * 16),
        "asymmetric 1": Rounding(1, scale * 16, torch.tensor([0], dtype=torch.int32)),
    }[kind]


KINDS = ["dynamic 8", "dynamic 4", "static 8", "static 4", "asymmetric 8", "asymmetric 4", "static 1", "asymmetric 1"]


def compare(
    backend, tokens, rows, columns, book, packing, scales, kind, dtype=torch.float32, bias=True, seed=0, device="cpu"
):
    """A backend's answer must be the product in double precision, but for rounding."""
    weight, offset = packed_matrix(rows, columns, book, packing, scales, seed)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    rounding, offset = inputs(kind), offset if bias else None
    there, x_there = on(device, weight), x.to(device)
    rounding_there = rounding and Rounding(rounding.bits, *(None if t is None else t.to(device) for t in rounding[1:]))
    assert backend.supports(there, x_there, rounding_there)
    offset_there = None if offset is None else offset.to(device)
    ours = backend.linear(backend.prepare(there), x_there, offset_there, rounding_there).cpu()
    assert ours.dtype == dtype
    assert ours.shape == (tokens, rows)
    q = (x.float() if rounding is None else rounding.apply(x.float())).double()
    if backend.name == "reference" and dtype != torch.float32:
        q = q.to(dtype).double()  # it goes on with what the model computes in
    dense = weight.dequantize().double()
    exact, size = q @ dense.T, q.abs() @ dense.abs().T
    if bias:
        exact, size = exact + offset.double(), size + offset.double().abs()
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    error = (ours.double() - exact).abs()
    limit = tolerance * (size if dtype == torch.float32 else exact.abs()) + 1e-6 * size
    unpacked = backend.name == "cpu" and rounding is None and tokens > FEW_TOKENS
    if dtype != torch.float32 and (backend.name == "reference" or unpacked):
        limit = limit + tolerance * size  # its weights are rounded to that type, too
    assert bool((error <= limit).all()), f"{(error / size).max():.2e}"

"""Triton's kernels by the matrix of the others: interpreted on the CPU, compiled on a GPU, and built for GPUs that are
not there."""

import os
import subprocess
import sys

import pytest
import torch

from abridged.core.errors import AbridgedError
from abridged.runtime import backends, ops
from abridged.runtime.activations import INPUT_FUNCTIONS, Rounding
from abridged.runtime.backends import Reference, Triton
from abridged.storage.packing import pack
from packed import drawn
from products import KINDS, STORAGES, compare, on, packed_matrix

pytest.importorskip("triton")
BOTH = ("interpreted", pytest.param("compiled", marks=pytest.mark.gpu))


@pytest.fixture(params=BOTH)
def device(request, monkeypatch):
    """Where tensors lie: the CPU for the interpreter."""
    from abridged.runtime import triton_kernels

    if request.param == "compiled":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return "cuda"
    if not triton_kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 was not set before triton was imported")
    monkeypatch.setattr(backends, "_interprets", lambda: True)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)  # whatever path the others are forced onto
    return "cpu"


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_input(device, book, packing):
    for kind in ("as they are", *KINDS):
        compare(Triton(), 3, 37, 100, book, packing, 37, kind, device=device)


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_every_granularity(device, book, packing):
    groups = [] if packing == "base3" else [36 * 2, 36 * 4]
    for scales in (1, 3, 36, *groups):
        for kind in ("dynamic 8", "as they are"):
            compare(Triton(), 2, 36, 128, book, packing, scales, kind, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["as they are", "static 8", "asymmetric 8"])
def test_types(device, dtype, kind):
    for tokens, rows, columns in ((1, 50, 128), (20, 130, 65), (130, 7, 9)):
        compare(Triton(), tokens, rows, columns, "ternary", "bits", rows, kind, dtype, tokens > 1, device=device)


@pytest.mark.parametrize("function", INPUT_FUNCTIONS)
def test_a_function_on_the_way(device, function):
    weight = on(device, packed_matrix(8, 64, "int8", "bits", 8)[0])
    x = torch.linspace(-4, 4, 5 * 64, device=device).view(5, 64)
    for rounding in (None, Rounding(8)):
        expected = Reference().linear(weight, x, None, rounding, function)
        ours = Triton().linear(Triton().prepare(weight), x, None, rounding, function)
        step = x.abs().max() / 127 * weight.dequantize().abs().max()  # values between two codes may go to either
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-4 if rounding is None else float(step))


def test_integers_are_exact(device):
    """With scales of 1 and whole inputs nothing is rounded, so that sums must agree to the last unit."""
    for book, packing in STORAGES:
        weight = on(device, packed_matrix(29, 333, book, packing, 29)[0]._replace(scales=torch.ones(29)))
        x = torch.randint(-127, 128, (3, 333), generator=torch.Generator().manual_seed(1)).float().to(device)
        rounding = Rounding(8, torch.ones(1, device=device))
        ours = Triton().linear(Triton().prepare(weight), x, None, rounding)
        assert torch.equal(ours, (x.double() @ weight.dequantize().double().T).float())


def test_many_tokens_take_the_unpacked_matrix(device, monkeypatch):
    from abridged.runtime import triton_kernels

    monkeypatch.setattr(triton_kernels, "UNPACKED_FROM", 3)
    monkeypatch.setattr(triton_kernels, "_launch_linear", None)
    compare(Triton(), 3, 37, 96, "uint4", "bits", 37 * 3, "as they are", device=device)


@pytest.mark.parametrize(("book", "packing"), STORAGES)
def test_rows_and_all_of_them(device, book, packing):
    for scales in (1, 40, 40 if packing == "base3" else 80):
        weight, _, dense = drawn(40, 66, book, packing, scales)
        handle, ids = Triton().prepare(on(device, weight)), torch.tensor([[0, 39, 7], [7, 1, 20]], device=device)
        assert torch.equal(Triton().embedding(handle, ids).cpu(), dense[ids.cpu()])
        assert torch.equal(Triton().embedding(handle, ids.int()).cpu(), dense[ids.cpu()])
        assert torch.equal(handle.unpack().cpu(), dense)
        assert torch.equal(handle.unpack(torch.bfloat16).cpu(), dense.bfloat16())
    if device == "cpu":  # a GPU says so later, and then computes nothing more in this process
        for wrong in (40, -1):
            with pytest.raises(IndexError, match="outside the 40 rows"):
                Triton().embedding(handle, torch.tensor([wrong]))


def test_what_is_not_a_number_stays_so(device):
    weight, x = on(device, packed_matrix(5, 64, "ternary", "bits", 5)[0]), torch.zeros(14, 64)
    x[3, 7] = float("nan")
    for rounding in (None, Rounding(8), Rounding(8, torch.ones(1, device=device))):
        ours = Triton().linear(Triton().prepare(weight), x.to(device), None, rounding)
        assert ours[3].isnan().all()
        assert ours[[*range(3), *range(4, 14)]].eq(0).all()


def test_no_tokens(device):
    weight = on(device, packed_matrix(5, 64, "ternary", "bits", 5)[0])
    for rounding in (None, Rounding(8)):
        ours = Triton().linear(Triton().prepare(weight), torch.zeros(0, 64, device=device), None, rounding)
        assert ours.shape == (0, 5)


def test_what_it_does_not_serve_is_the_references(device):
    weight, _ = packed_matrix(6, 40, "int4", "bits", 6 * 5)  # groups of 8
    weight, x = on(device, weight), torch.zeros(1, 40, device=device)
    assert isinstance(backends.choose(weight, x), Reference)
    assert not Triton().supports(on(device, packed_matrix(6, 40, "int4", "bits", 6)[0]), x.double())
    assert not isinstance(backends.choose(weight, torch.tensor([1], device=device)), Reference)  # rows, of any groups


def test_the_ops_come_to_it(device, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", [Triton(), Reference()])
    asked, prepare = [], Triton.prepare
    monkeypatch.setattr(Triton, "prepare", lambda self, weight: asked.append(1) or prepare(self, weight))
    weight, bias = packed_matrix(12, 64, "int3", "bits", 12)
    weight, x = on(device, weight), torch.randn(2, 64, device=device, requires_grad=True)
    y = ops.linear(weight, x, bias.to(device), Rounding(8))
    y.sum().backward()
    assert asked == [1]
    torch.testing.assert_close(x.grad, weight.dequantize().sum(0).expand(2, 64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 63)}, "63 columns"),
        ({"x": torch.tensor(1.0)}, "0 columns"),
        ({"bias": torch.ones(4)}, "bias"),
        ({"rounding": Rounding(8, torch.ones(2))}, "input's scale"),
        ({"rounding": Rounding(8, torch.ones(1), torch.ones(1))}, "zero point"),
        ({"rounding": Rounding(16)}, "16 bits"),
        ({"function": "gelo"}, "no input function 'gelo'"),
    ],
)
def test_sizes_are_checked_before_a_kernel_sees_them(change, words):
    given = {"x": torch.zeros(2, 64), "bias": None, "rounding": Rounding(8), "function": "identity"} | change
    handle = Triton().prepare(packed_matrix(5, 64, "ternary", "bits", 5)[0])
    with pytest.raises(AbridgedError, match=words):
        Triton().linear(handle, **given)
    codes = pack(torch.zeros(5, 128, dtype=torch.int8), "ternary", "bits")[::2]
    with pytest.raises(AbridgedError, match="not contiguous"):
        Triton().prepare(handle.packed._replace(codes=codes))


BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from abridged.runtime import triton_kernels as ours
from abridged.storage.matrix import Storage

def build(kernel, types, sizes):
    names = kernel.arg_names
    signature = {name: types.get(name) or "constexpr" for name in names}
    fixed = {(i,): sizes.get(name) for i, name in enumerate(names) if signature[name] == "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

for book, scales, x in (("ternary", 768, "*i8"), ("uint3", 768 * 6, "*bf16")):
    layout = ours._layout(Storage(768, 768, book, "bits", scales))
    weight = {"codes": "*u8", "scales": "*fp32"} | ({"zeros": "*u8"} if book[0] == "u" else {})
    blocks = {"BLOCK_TOKENS": 64, "BLOCK_ROWS": 64, "BLOCK_COLUMNS": 64}
    product = {"x": x, "bias": "*fp32", "x_scales": "*fp32" if x == "*i8" else None, "y": "*bf16", "tokens": "i32"}
    assert "mma" in build(ours._linear, weight | product, layout | blocks), "no tensor cores"
    build(ours._rows, weight | {"ids": "*i64", "y": "*fp32"}, layout | {"BLOCK": 1024})
for zero_point, low in ((None, -127), ("*i32", 0)):
    tensors = {"x": "*bf16", "levels": "*i8", "x_scales": "*fp32", "scale": "*fp32", "zero_point": zero_point}
    sizes = {"COLUMNS": 768, "FUNCTION": 1, "LOW": low, "HIGH": 127, "SMALLEST": 1e-10, "BLOCK": 1024}
    build(ours._round, tensors, sizes)
"""


@pytest.mark.slow
def test_they_compile_for_a_gpu_that_is_not_there():
    """Down to the machine code of compute capability 9.0, on tensor cores."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

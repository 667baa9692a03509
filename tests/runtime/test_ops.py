"""The packed ops: schema and fake implementations, and values against a plain matrix product."""

import pytest
import torch
import torch.nn.functional as F

from abridged.core.errors import AbridgedError
from abridged.runtime import backends, ops
from abridged.runtime.weight import PackedWeight
from abridged.storage.code_books import CODE_BOOKS
from abridged.storage.matrix import Storage
from abridged.storage.packing import pack
from packed import drawn

WAYS = [(book, "bits") for book in CODE_BOOKS] + [("ternary", "base3")]
ROWS, COLUMNS = 12, 20


@pytest.fixture(params=WAYS, ids="-".join)
def way(request):
    return request.param


@pytest.fixture(params=[1, 3, ROWS, 4 * ROWS], ids=["tensor", "block", "row", "group"])
def matrix(request, way):
    weight, levels, dense = drawn(ROWS, COLUMNS, *way, request.param)
    return weight, dense, levels


def ternary(levels, scales):
    return PackedWeight(pack(levels, "ternary", "bits"), scales, Storage(*levels.shape, "ternary", "bits", len(scales)))


def test_opcheck(way, matrix):
    codes, scales, storage, zeros = matrix[0]
    x, bias, ids = torch.randn(2, 3, COLUMNS), torch.randn(ROWS), torch.tensor([[0, 5], [11, 5]])
    for given in (bias, None):
        arguments = (x, codes, scales, zeros, given, "identity", storage.text)
        torch.library.opcheck(torch.ops.abridged.packed_linear.default, arguments)
    torch.library.opcheck(torch.ops.abridged.packed_embedding.default, (ids, codes, scales, zeros, storage.text))


def test_opcheck_with_gradients():
    codes, scales, storage, zeros = ternary(torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8), torch.ones(ROWS))
    x, grad = torch.randn(2, COLUMNS, requires_grad=True), torch.randn(2, 3, ROWS, requires_grad=True)
    torch.library.opcheck(
        torch.ops.abridged.packed_linear.default, (x, codes, scales, zeros, None, "gelu", storage.text)
    )
    torch.library.opcheck(torch.ops.abridged.packed_backward.default, (grad, codes, scales, zeros, storage.text))


def test_of_nothing(way, matrix):
    weight, dense, _ = matrix
    ids = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(ops.embedding(weight, ids), dense[ids])
    assert torch.equal(weight.rows(ids), dense[ids])
    assert ops.linear(weight, torch.empty(0, COLUMNS)).shape == (0, ROWS)


def test_values(way, matrix):
    weight, dense, levels = matrix
    assert torch.equal(weight.levels(), levels)
    assert torch.equal(weight.dequantize(), dense)
    scales = weight.row_scales()
    zeros = torch.zeros_like(scales) if weight.zeros is None else weight.row_zeros()
    grouped = levels.float().view(ROWS, scales.shape[1], -1)
    assert torch.equal(((grouped - zeros[..., None]) * scales[..., None]).view(ROWS, COLUMNS), dense)
    x, bias, ids = torch.randn(2, 3, COLUMNS), torch.randn(ROWS), torch.tensor([[0, 5], [11, 5]])
    error = (ops.linear(weight, x, bias) - F.linear(x, dense, bias)).abs()  # the kernels add up in their own order
    assert bool((error <= 1e-6 * (x.abs() @ dense.abs().T + bias.abs())).all())
    assert torch.equal(ops.embedding(weight, ids), dense[ids])
    assert torch.equal(weight.rows(ids), dense[ids])


def test_a_storage_is_what_its_text_says(way, matrix):
    storage = matrix[0].storage
    assert Storage.parse(storage.text) == storage
    assert storage.packed_bytes == matrix[0].codes.numel()
    assert storage.groups == matrix[0].row_scales().shape[1]


def test_a_large_matrix_is_taken_in_slices(way, matrix, monkeypatch):
    weight, dense, _ = matrix
    monkeypatch.setattr(backends, "SLICE_WEIGHTS", 5 * COLUMNS)
    x, bias = torch.randn(2, COLUMNS), torch.randn(ROWS)
    torch.testing.assert_close(ops.linear(weight, x, bias), F.linear(x, dense, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_output_has_the_inputs_dtype(dtype):
    weight = ternary(torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8), torch.ones(1))
    x = torch.randn(3, COLUMNS, dtype=dtype)
    assert ops.linear(weight, x, torch.randn(ROWS)).dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear(weight, x.float())
    assert y.dtype == torch.float32


def test_the_embedding_reads_no_other_rows():
    """Rows that are not asked for may hold anything: here, what is no code at all."""
    levels = torch.randint(-1, 2, (4, 8), dtype=torch.int8)
    weight = ternary(levels, torch.tensor([1.0, 2.0, float("nan"), 4.0]))
    weight.codes.view(4, -1)[2] = 255
    rows = ops.embedding(weight, torch.tensor([0, 3]))
    assert torch.equal(rows, levels[[0, 3]] * torch.tensor([[1.0], [4.0]]))


def test_bad_arguments_are_errors():
    weight = PackedWeight(torch.zeros(4, dtype=torch.uint8), torch.ones(1), Storage(4, 8, "ternary", "bits", 1))
    with pytest.raises(AbridgedError, match="are 8 bytes"):
        ops.linear(weight, torch.ones(1, 8))
    with pytest.raises((IndexError, RuntimeError)):
        ops.embedding(weight._replace(storage=Storage(4, 4, "ternary", "bits", 1)), torch.tensor([4]))
    with pytest.raises(AbridgedError, match="3 scales do not divide"):
        Storage(4, 8, "ternary", "bits", 3)
    with pytest.raises(AbridgedError, match="ternary has no zero points"):
        weight._replace(storage=Storage(4, 4, "ternary", "bits", 1), zeros=torch.zeros(1)).dequantize()
    with pytest.raises(AbridgedError, match="uint2 has zero points"):
        weight._replace(storage=Storage(4, 4, "uint2", "bits", 1)).dequantize()
    with pytest.raises(AbridgedError, match="1x1 uint2 codes packed as bits are 1 bytes"):
        weight._replace(storage=Storage(4, 4, "uint2", "bits", 1), zeros=torch.zeros(2, dtype=torch.uint8)).dequantize()
    with pytest.raises(AbridgedError, match="1 scales for a matrix of 4x4 that has 4"):
        weight._replace(storage=Storage(4, 4, "ternary", "bits", 4)).dequantize()


def test_compiles_into_one_graph():
    weight = ternary(torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8), torch.ones(1))
    x = torch.randn(3, COLUMNS)

    def layer(x):
        return ops.linear(weight, x).relu()

    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))

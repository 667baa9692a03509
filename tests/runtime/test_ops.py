"""The packed ops: schema and fake implementations, and values against a plain matrix product."""

import pytest
import torch
import torch.nn.functional as F

from abridged.checkpoint.code_books import CODE_BOOKS
from abridged.checkpoint.packing import pack
from abridged.errors import AbridgedError
from abridged.runtime import ops

WAYS = [(book, "bits") for book in CODE_BOOKS] + [("ternary", "base3")]
ROWS, COLUMNS = 12, 20


@pytest.fixture(params=WAYS, ids="-".join)
def way(request):
    return request.param


@pytest.fixture(params=[1, 3, ROWS, 4 * ROWS], ids=["tensor", "block", "row", "group"])
def matrix(request, way):
    generator = torch.Generator().manual_seed(0)
    book = torch.tensor(CODE_BOOKS[way[0]], dtype=torch.int8)
    levels = book[torch.randint(len(book), (ROWS, COLUMNS), generator=generator)]
    scale = torch.rand(request.param, generator=generator) + 0.5
    weight = (levels.view(len(scale), -1) * scale[:, None]).view(ROWS, COLUMNS)
    return pack(levels, *way), scale, weight, levels


def test_opcheck(way, matrix):
    packed, scale, _, _ = matrix
    shape = (ROWS, COLUMNS, *way)
    torch.library.opcheck(ops.unpack, (packed, *shape))
    x, bias, ids = torch.randn(2, 3, COLUMNS), torch.randn(ROWS), torch.tensor([[0, 5], [11, 5]])
    torch.library.opcheck(ops.packed_linear, (x, packed, scale, bias, *shape))
    torch.library.opcheck(ops.packed_linear, (x, packed, scale, None, *shape))
    torch.library.opcheck(ops.packed_embedding, (ids, packed, scale, *shape))


def test_values(way, matrix):
    packed, scale, weight, levels = matrix
    shape = (ROWS, COLUMNS, *way)
    assert torch.equal(ops.unpack(packed, *shape), levels)
    assert torch.equal(ops.dequantize(packed, scale, *shape), weight)
    x, bias, ids = torch.randn(2, 3, COLUMNS), torch.randn(ROWS), torch.tensor([[0, 5], [11, 5]])
    assert torch.equal(ops.packed_linear(x, packed, scale, bias, *shape), F.linear(x, weight, bias))
    assert torch.equal(ops.packed_embedding(ids, packed, scale, *shape), weight[ids])


def test_a_large_matrix_is_taken_in_slices(way, matrix, monkeypatch):
    packed, scale, weight, _ = matrix
    monkeypatch.setattr(ops, "SLICE_WEIGHTS", 5 * COLUMNS)
    x, bias = torch.randn(2, COLUMNS), torch.randn(ROWS)
    y = ops.packed_linear(x, packed, scale, bias, ROWS, COLUMNS, *way)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_output_has_the_inputs_dtype(dtype):
    levels = torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8)
    packed, scale, x = pack(levels, "ternary", "bits"), torch.ones(1), torch.randn(3, COLUMNS, dtype=dtype)
    y = ops.packed_linear(x, packed, scale, torch.randn(ROWS), ROWS, COLUMNS, "ternary", "bits")
    assert y.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.packed_linear(x.float(), packed, scale, None, ROWS, COLUMNS, "ternary", "bits")
    assert y.dtype == torch.float32


def test_the_embedding_reads_no_other_rows():
    """Rows that are not asked for may hold anything: here, what is no code at all."""
    levels = torch.randint(-1, 2, (4, 8), dtype=torch.int8)
    packed = pack(levels, "ternary", "bits").view(4, -1)
    packed[2] = 255
    scale = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    rows = ops.packed_embedding(torch.tensor([0, 3]), packed.flatten(), scale, 4, 8, "ternary", "bits")
    assert torch.equal(rows, levels[[0, 3]] * torch.tensor([[1.0], [4.0]]))


def test_bad_arguments_are_errors():
    packed, scale = torch.zeros(4, dtype=torch.uint8), torch.ones(1)
    with pytest.raises(AbridgedError, match="are 8 bytes"):
        ops.packed_linear(torch.ones(1, 8), packed, scale, None, 4, 8, "ternary", "bits")
    with pytest.raises((IndexError, RuntimeError)):
        ops.packed_embedding(torch.tensor([4]), packed, scale, 4, 4, "ternary", "bits")


def test_compiles_into_one_graph():
    levels = torch.randint(-1, 2, (ROWS, COLUMNS), dtype=torch.int8)
    packed, scale, x = pack(levels, "ternary", "bits"), torch.ones(1), torch.randn(3, COLUMNS)

    def layer(x):
        return ops.packed_linear(x, packed, scale, None, ROWS, COLUMNS, "ternary", "bits").relu()

    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))

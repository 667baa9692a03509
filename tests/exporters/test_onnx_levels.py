"""Packed weights put in place of a graph's own: onnxruntime computes with the values that they stand for."""

import numpy as np
import pytest

from abridged.exporters.onnx import OPSET, _Levels
from abridged.runtime.modules import PackedEmbedding, PackedLinear
from abridged.storage.format import EmbeddingSpec, LinearSpec
from packed import drawn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ROWS, COLUMNS = 8, 64


def packed(book, scales, embedding=False, rows=ROWS):
    """A packed module and its values (rows, COLUMNS)."""
    weight, _, values = drawn(rows, COLUMNS, book, "bits", scales)
    if embedding:
        module = PackedEmbedding(EmbeddingSpec.of(weight.storage, "float32", kind="embedding"))
    else:
        module = PackedLinear(LinearSpec.of(weight.storage, "float32", kind="linear", bias=False))
    module.codes.data, module.scales.data = weight.codes, weight.scales
    if weight.zeros is not None:
        module.zeros.data = weight.zeros
    return module, values.numpy()


def answer(nodes, weight, module, given):
    """Replace the initialiser w of a graph from x to y, run it, and say (y, of what type the weight is)."""
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(given.dtype)
    bias = np.arange(len(module.packed.row_scales()), dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [None] * given.ndim)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.ascontiguousarray(weight), "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=11)
    types = _Levels(model).replace({"module": module})
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # inputs stay in FP32
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": given})[0], dict(types)


@pytest.mark.parametrize("scales", [ROWS, 2 * ROWS])
@pytest.mark.parametrize("book", ["quaternary", "q2_0", "ternary", "uint2", "int4"])
def test_a_product_however_the_graph_has_it(book, scales):
    from onnx import helper

    module, values = packed(book, scales)
    x = np.random.default_rng(0).normal(size=(2, 5, COLUMNS)).astype(np.float32)
    bits = "int4" if book == "int4" else "int2"
    found, types = answer([helper.make_node("MatMul", ["x", "w"], ["y"])], values.T, module, x)
    np.testing.assert_allclose(found, x @ values.T, atol=1e-4)
    assert types == {bits: 1}
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    found, types = answer([gemm], values, module, x[0])
    np.testing.assert_allclose(found, x[0] @ values.T + np.arange(ROWS), atol=1e-4)
    assert types == {bits: 1}


@pytest.mark.parametrize("book", ["quaternary", "q2_0", "ternary", "uint2"])
def test_rows_that_fill_no_bytes_have_four_bits(book):
    """With 2, onnxruntime 1.31 gives wrong answers."""
    from onnx import helper

    module, values = packed(book, 6, rows=6)
    x = np.random.default_rng(0).normal(size=(2, 5, COLUMNS)).astype(np.float32)
    found, types = answer([helper.make_node("MatMul", ["x", "w"], ["y"])], values.T, module, x)
    np.testing.assert_allclose(found, x @ values.T, atol=1e-4)
    assert types == {"int4": 1}


def test_four_levels_that_something_else_reads_have_four_bits():
    from onnx import helper

    module, values = packed("quaternary", ROWS)
    x = np.ones((1, COLUMNS), dtype=np.float32)
    found, types = answer([helper.make_node("Add", ["x", "w"], ["y"])], values, module, x)
    np.testing.assert_allclose(found, x + values, atol=1e-6)
    assert types == {"int4": 1}


@pytest.mark.parametrize("scales", [ROWS, 4 * ROWS])
@pytest.mark.parametrize("book", ["quaternary", "q2_0", "ternary", "uint2", "int8"])
def test_rows_that_are_looked_up(book, scales):
    from onnx import helper

    module, values = packed(book, scales, embedding=True)
    ids = np.array([[0, 5, 2], [2, 1, 1]])
    found, types = answer([helper.make_node("Gather", ["w", "x"], ["y"])], values, module, ids)
    np.testing.assert_allclose(found, values[ids], atol=1e-6)
    assert types == {"int8" if book == "int8" else "int2": 1}

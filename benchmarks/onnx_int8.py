"""onnxruntime's dynamic int8, a contestant of several benchmarks; ImportError where it is not installed."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import quantize_dynamic


def dynamic_int8(plain: Path, small: Path) -> None:
    """Write the ONNX file `plain` with products and embeddings in integers to `small`."""
    graph = onnx.load(str(plain))
    del graph.graph.value_info[:]  # torch's shapes are not always those that onnxruntime's tool infers
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, str(bare := Path(folder) / "bare.onnx"))
        quantize_dynamic(str(bare), str(small))

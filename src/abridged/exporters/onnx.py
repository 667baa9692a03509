"""Export of an encoder to ONNX, its matrices as 2-, 4- or 8-bit integers with their scales, for onnxruntime.

torch writes the graph of the dense model. In it, every weight that the checkpoint has packed becomes levels: of a
linear layer through DequantizeLinear, which onnxruntime joins with the product that reads it, so that the matrix is
never whole; of an embedding as bytes whose rows are looked up first and taken apart then.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abridged.checkpoint.files import checked_directory
from abridged.checkpoint.load import load
from abridged.checkpoint.save import written_file
from abridged.checkpoint.skeleton import packed_modules
from abridged.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.families import anatomy_of
from abridged.runtime import ops
from abridged.runtime.modules import PackedEmbedding, PackedModule

if TYPE_CHECKING:
    import onnx

BITS = {"binary": 2, "ternary": 2, "quaternary": 4, "int4": 4, "int8": 8}
"""Bits of ONNX's signed integers that hold each code book's levels."""
OPSET = 25  #: the first with integers of 2 bits


def export_onnx(directory: str | Path, output: str | Path) -> dict[str, Any]:
    """Write the compressed BERT or RoBERTa in `directory`, under any head, to the file `output`.

    Its inputs are input_ids, attention_mask and, where the model knows them, token_type_ids, all (batch, length) int64;
    its outputs are called as transformers calls them. Activation quantisers have no place in the file: onnxruntime
    rounds what enters a product with integers to 8 bits in blocks of its own.

    Returns "file_bytes", "types" (matrices of each width) and "notes".
    Raises AbridgedError: a model that writes text, an output that exists or cannot be written, or onnx is not there.
    """
    target = Path(output).expanduser().absolute()
    if target.exists():
        raise AbridgedError(f"{output} exists already: choose another output")
    packed = load(checked_directory(directory))
    if packed.can_generate():
        raise AbridgedError(f"ONNX export knows encoders, and a {type(packed).__name__} writes text: take GGUF")
    model = _graph_of(packed)
    types = _Levels(model).replace(packed_modules(packed))
    with written_file(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    note = "onnxruntime rounds activations to 8 bits in a way of its own, so answers differ a little"
    return {"file_bytes": target.stat().st_size, "types": dict(types), "notes": [note]}


def _graph_of(packed: Any) -> onnx.ModelProto:
    """The dense model as ONNX, with batch and length left open."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise AbridgedError('ONNX export needs onnx and onnxscript: pip install "abridged[onnx]"') from None
    dense = dense_model(packed, torch.float32)
    dense.set_attn_implementation("eager")
    context = anatomy_of(dense).context
    names = ["input_ids", "attention_mask"]
    if getattr(dense.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    inputs = {name: torch.full((2, min(8, context)), int(name == "attention_mask")) for name in names}
    with torch.no_grad():
        outputs = [key for key, value in dense(**inputs, return_dict=True).items() if value is not None]
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=context)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            dense,
            (),
            kwargs=inputs,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=dict.fromkeys(names, free),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")  # where in this machine's files each node was written, and much else
    return model


class _Levels:
    """Puts levels in place of a graph's weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.types: Counter[str] = Counter()

    def replace(self, modules: dict[str, PackedModule]) -> Counter[str]:
        """Every initialiser that is the weight of one of `modules`, as it lies or transposed, whatever its name."""
        from onnx import numpy_helper

        known: dict[bytes, tuple[PackedModule, bool]] = {}
        for module in modules.values():
            if module.spec.tied:
                continue
            weight = module.dequantized().float().numpy()
            known |= {_key(weight): (module, False), _key(weight.T): (module, True)}
        for initializer in list(self.graph.initializer):
            if len(initializer.dims) != 2:
                continue
            found = known.get(_key(numpy_helper.to_array(initializer)))
            if found is None:
                continue
            self.graph.initializer.remove(initializer)
            module, transposed = found
            readers = [node for node in self.graph.node if initializer.name in node.input]
            if isinstance(module, PackedEmbedding) and all(node.op_type == "Gather" for node in readers):
                for node in readers:
                    self._look_up(node, initializer.name, module)
            else:
                self._dequantize(initializer.name, module, transposed)
            self.types[f"int{BITS[module.spec.code_book]}"] += 1
        return self.types

    def _dequantize(self, name: str, module: PackedModule, transposed: bool) -> None:
        from onnx import TensorProto, helper

        bits = BITS[module.spec.code_book]
        levels = ops.unpack(module.weight, *module.storage).numpy()
        scale = ops._row_scales(module.weight_scale.float(), len(levels)).numpy()  # (rows, groups)
        groups = scale.shape[1]
        if transposed:
            levels, scale = levels.T, scale.T
        kind = getattr(TensorProto, f"INT{bits}")
        data = _packed(levels, bits).tobytes()
        self.graph.initializer.append(helper.make_tensor(f"{name}.levels", kind, levels.shape, data, raw=True))
        runs: dict[str, int] = {"axis": int(transposed)}  # of columns that share a scale: whole rows, or groups
        if groups > 1:
            runs = {"axis": int(not transposed), "block_size": module.spec.columns // groups}
        self._constant(f"{name}.scale", scale if groups > 1 else scale.reshape(-1))
        parts = [f"{name}.levels", f"{name}.scale"]
        self.graph.node.insert(0, helper.make_node("DequantizeLinear", parts, [name], **runs))

    def _look_up(self, gather: Any, name: str, module: PackedModule) -> None:
        """Rows of bytes, looked up, shifted and masked into levels, each above its middle."""
        from onnx import helper

        bits = BITS[module.spec.code_book]
        levels = ops.unpack(module.weight, *module.storage).numpy()
        columns, per_byte, ids = module.spec.columns, 8 // bits, gather.input[1]
        padded = np.pad(levels.astype(np.int16), ((0, 0), (0, -columns % per_byte)))
        self._constant(f"{name}.bytes", _packed(padded + (1 << (bits - 1)), bits).reshape(len(levels), -1))
        scale = ops._row_scales(module.weight_scale.float(), len(levels)).numpy()
        if scale.shape[1] > 1:
            scale = np.repeat(scale, columns // scale.shape[1], axis=1)
        self._constant(f"{name}.scale", scale)
        self._constant(f"{name}.shifts", np.arange(0, 8, bits, dtype=np.uint8))
        self._constant(f"{name}.mask", np.array((1 << bits) - 1, dtype=np.uint8))
        self._constant(f"{name}.middle", np.array(float(1 << (bits - 1)), dtype=np.float32))
        self._constant(f"{name}.last", np.array([-1]))
        self._constant(f"{name}.flat", np.array([0, 0, -1]))
        self._constant(f"{name}.first", np.array([0]))
        self._constant(f"{name}.columns", np.array([columns]))
        out = gather.output[0]
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Gather", [f"{name}.bytes", ids], {}),
            ("Unsqueeze", ["", f"{name}.last"], {}),
            ("BitShift", ["", f"{name}.shifts"], {"direction": "RIGHT"}),
            ("BitwiseAnd", ["", f"{name}.mask"], {}),
            ("Reshape", ["", f"{name}.flat"], {}),
            ("Slice", ["", f"{name}.first", f"{name}.columns", f"{name}.last"], {}),
            ("Cast", [""], {"to": 1}),
            ("Sub", ["", f"{name}.middle"], {}),
        ]
        nodes, before = [], ""
        for number, (kind, inputs, settings) in enumerate(steps):
            after = f"{out}.{number}"
            nodes.append(helper.make_node(kind, [given or before for given in inputs], [after], **settings))
            before = after
        nodes.append(helper.make_node("Gather", [f"{name}.scale", ids], [f"{out}.scale"]))
        nodes.append(helper.make_node("Mul", [before, f"{out}.scale"], [out]))
        place = list(self.graph.node).index(gather)
        self.graph.node.remove(gather)
        for node in reversed(nodes):
            self.graph.node.insert(place, node)

    def _constant(self, name: str, values: np.ndarray) -> None:
        from onnx import numpy_helper

        if all(initializer.name != name for initializer in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _packed(levels: np.ndarray, bits: int) -> np.ndarray:
    """Integers of so many bits, two's complement, several to a byte: the first lowest, the last byte filled up."""
    per_byte = 8 // bits
    codes = np.pad(levels.astype(np.int16).reshape(-1), (0, -levels.size % per_byte)) & ((1 << bits) - 1)
    places = codes.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.int16)
    return np.bitwise_or.reduce(places, axis=1).astype(np.uint8)


def _key(weight: np.ndarray) -> bytes:
    """What tells weights apart: their values, by rows."""
    return hashlib.sha256(np.ascontiguousarray(weight, dtype=np.float32).tobytes()).digest()

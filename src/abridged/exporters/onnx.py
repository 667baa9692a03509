"""Export to ONNX, a compressed model's matrices as 2-, 4- or 8-bit integers with their scales, for onnxruntime.

torch writes the graph of the dense model. In it, every weight that the checkpoint has packed becomes levels: of a
linear layer through DequantizeLinear, which onnxruntime joins with the product that reads it, so that the matrix is
never whole; of an embedding as bytes whose rows are looked up first and taken apart then.

Four levels around 0 have a zero point of 1.5, which DequantizeLinear does not take, and MatMulNBits takes in floats, at
twenty times the time of an integer. So products have them half a step too low, and half of the sums of what comes in,
times the scales, is added to what comes out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from abridged import families
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.atomic import written_file
from abridged.core.errors import AbridgedError
from abridged.core.outputs import check_output
from abridged.data.sentences import pooling_weights_at
from abridged.exporters.dense import dense_model
from abridged.families.kinds import labels_texts
from abridged.families.logits import run_body
from abridged.models.load import first_line, load_any, load_tokenizer
from abridged.models.sentence import SentenceSettings, sentence_settings_of
from abridged.runtime.activations import Rounding
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule

if TYPE_CHECKING:
    import onnx

BITS = {"binary": 2, "ternary": 2, "quaternary": 2, "q2_0": 2, "int3": 4, "int4": 4, "int5": 8, "int6": 8, "int8": 8,
        "uint2": 2, "uint3": 4, "uint4": 4, "uint5": 8, "uint6": 8, "uint8": 8}  # fmt: skip
"""Bits of ONNX's integers, unsigned for those with zero points, that hold each code book's levels."""
STEPS = {"quaternary": (2, 1), "q2_0": (-1, 0)}
"""(a, b) of code books whose levels are a·i + b, with integers i; of the others the levels are the integers."""
OPSET = 25  #: the first with integers of 2 bits


def export_onnx(directory: str | Path, output: str | Path) -> dict[str, Any]:
    """Write the model `directory`, compressed or not, under any head, to the file `output`.

    Its inputs are input_ids, attention_mask and, where the model knows them, token_type_ids and decoder_input_ids, all
    (batch, length) int64; its outputs are called as transformers calls them. A model of sentences has the outputs
    last_hidden_state (batch, length, width) and sentence_embedding (batch, width), pooled and given length 1 as its
    files say, in FP32. What writes text is one pass over a whole
    text, without a cache. The file's metadata hold, as JSON, the tokenizer, special tokens, chat template, generation
    config, or labels. What enters a layer is rounded as the model rounds it; what attention multiplies is not. Unless a
    session's `session.qdq_matmulnbits_accuracy_level` is 1, onnxruntime rounds it again, to 8 bits in blocks.

    Returns "file_bytes", "types" (matrices of each width) and "notes".
    Raises AbridgedError: a model that torch cannot trace, an output that exists or cannot be written, or onnx is not
    there.
    """
    target = check_output(output, directory=False)
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise AbridgedError('ONNX export needs onnx and onnxscript: pip install "abridged[onnx]"') from None
    packed = load_any(directory)
    model = _graph_of(packed)
    types = _Levels(model).replace(packed_modules(packed))
    onnx.helper.set_model_props(model, _kept(directory, packed))
    with written_file(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    notes = (
        ["onnxruntime rounds activations in its own way, too, unless session.qdq_matmulnbits_accuracy_level is 1"]
        if types
        else []
    )
    if packed.can_generate():
        notes.append("the file computes all positions of a text at once: it keeps no cache to write text step by step")
    return {"file_bytes": target.stat().st_size, "types": dict(types), "notes": notes}


def _kept(directory: str | Path, model: Any) -> dict[str, str]:
    """What else an answer depends on, as JSON by name, for the file's metadata."""
    found: dict[str, Any] = {}
    with contextlib.suppress(AbridgedError):  # what reads pixels has no tokenizer
        tokenizer = load_tokenizer(directory, model)
        special: dict[str, str] = tokenizer.special_tokens_map
        found["special_tokens"] = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
        found["chat_template"] = tokenizer.chat_template
        found["tokenizer"] = json.loads(tokenizer.backend_tokenizer.to_str())
    if model.can_generate():
        found["generation_config"] = model.generation_config.to_dict()
    elif labels_texts(model):
        found["labels"] = model.config.id2label
    if (settings := _sentences(model)) is not None:
        names = ("pooling", "normalize", "max_length", "prompts", "default_prompt")
        found["sentences"] = {name: getattr(settings, name) for name in names}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in found.items() if value}


def _sentences(model: Any) -> SentenceSettings | None:
    """How a model's texts become vectors, where its files say so."""
    settings = sentence_settings_of(model)
    return None if settings is None or settings.assumed else settings


def _graph_of(packed: Any) -> onnx.ModelProto:
    """The dense model as ONNX, with batch and length left open."""
    dense = dense_model(packed, torch.float32)
    _round_inputs(dense, packed)
    dense.set_attn_implementation("eager")
    context = families.view(dense).context
    config, names = dense.config, ["input_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    for module in dense.modules():  # a decoder's config is its own
        if hasattr(module, "config"):
            module.config.use_cache = False
    inputs = {name: torch.full((2, min(8, context)), int(name == "attention_mask")) for name in names}
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=context)}
    shapes = dict.fromkeys(names, free)
    if config.is_encoder_decoder:
        names.append("decoder_input_ids")
        inputs["decoder_input_ids"] = torch.full((2, min(6, context)), 1)
        shapes["decoder_input_ids"] = {0: free[0], 1: torch.export.Dim("written", min=1, max=context)}
    settings = _sentences(packed)
    traced = dense if settings is None else _Embedder(dense, settings)
    with torch.no_grad():
        outputs = [key for key, value in traced(**inputs).items() if value is not None]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                traced,
                (),
                kwargs=inputs,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # torch.export raises whatever the model's code does
            raise AbridgedError(f"torch cannot trace a {type(dense).__name__}: {first_line(error)}") from error
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")  # where in this machine's files each node was written, and much else
    return model


def _round_inputs(dense: Any, packed: Any) -> None:
    """Have the layers of a stock model round what enters them as the packed ones do."""
    for path, module in packed_modules(packed).items():
        rounding = module.rounding() if isinstance(module, PackedLinear) else None
        if rounding is not None:
            dense.get_submodule(path).register_forward_pre_hook(partial(_rounded, rounding))


def _rounded(rounding: Rounding, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return rounding.apply(inputs[0])


class _Embedder(torch.nn.Module):
    """A model of sentences as one that gives their vectors, too, whatever side a text is padded on."""

    def __init__(self, model: Any, settings: SentenceSettings) -> None:
        super().__init__()
        self.model, self.pooling, self.normalize = model, settings.pooling, settings.normalize

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs |= {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = run_body(self.model, inputs, return_dict=True).last_hidden_state
        weights = pooling_weights_at(attention_mask.cumsum(-1), attention_mask.bool(), self.pooling)
        vectors = (weights.unsqueeze(-1) * hidden.float()).sum(1)
        vectors = torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors
        return {"last_hidden_state": hidden, "sentence_embedding": vectors}


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
            bits = BITS[module.spec.code_book]
            if isinstance(module, PackedEmbedding) and all(node.op_type == "Gather" for node in readers):
                for node in readers:
                    self._look_up(node, initializer.name, module)
            else:
                step, above = STEPS.get(module.spec.code_book, (1, 0))
                products = all(_multiplies(node, initializer.name, transposed) for node in readers)
                # onnxruntime 1.31 computes wrongly with 2 bits where rows do not fill bytes
                if bits == 2 and (module.spec.rows % 4 or module.spec.columns % 4 or (above and not products)):
                    bits, step, above = 4, 1, 0
                self._dequantize(initializer.name, module, transposed, bits, step, above)
                for node in readers if above else ():
                    self._add_sums(node, module, above)
            self.types[f"int{bits}"] += 1
        return self.types

    def _dequantize(
        self, name: str, module: PackedModule, transposed: bool, bits: int, step: int = 1, above: int = 0
    ) -> None:
        """Make a weight of integers (level - above) / step and scales, the latter times `step`."""
        from onnx import TensorProto, helper

        levels = (module.packed.levels().numpy() - above) // step
        scale = module.packed.row_scales().numpy() * np.float32(step)  # (rows, groups)
        zeros = module.packed.row_zeros()
        zero = None if zeros is None else zeros.numpy()
        groups = scale.shape[1]
        if transposed:
            levels, scale, zero = levels.T, scale.T, None if zero is None else zero.T
        kind = getattr(TensorProto, f"INT{bits}" if zero is None else f"UINT{bits}")
        data = _packed(levels, bits).tobytes()
        self.graph.initializer.append(helper.make_tensor(f"{name}.levels", kind, levels.shape, data, raw=True))
        runs: dict[str, int] = {"axis": int(transposed)}  # of columns that share a scale: whole rows, or groups
        if groups > 1:
            runs = {"axis": int(not transposed), "block_size": module.spec.columns // groups}
        self._constant(f"{name}.scale", scale if groups > 1 else scale.reshape(-1))
        parts = [f"{name}.levels", f"{name}.scale"]
        if zero is not None:
            data, shape = _packed(zero, bits).tobytes(), zero.shape if groups > 1 else (zero.size,)
            self.graph.initializer.append(helper.make_tensor(f"{name}.zero", kind, shape, data, raw=True))
            parts.append(f"{name}.zero")
        self.graph.node.insert(0, helper.make_node("DequantizeLinear", parts, [name], **runs))

    def _add_sums(self, reader: Any, module: PackedModule, above: int) -> None:
        """Add what a product with levels too low by `above` lacks: its inputs' sums under each scale, times that."""
        from onnx import helper

        columns, groups = module.spec.columns, module.spec.storage.groups
        x, out = reader.input[0], reader.output[0]
        sums, scale = f"abridged.sums.{columns}.{groups}", f"{out}.above"
        self._constant(sums, np.repeat(np.eye(groups, dtype=np.float32), columns // groups, axis=0))
        # a copy: a scale that something else reads keeps onnxruntime from joining the levels with their product
        self._constant(scale, module.packed.row_scales().numpy().T * np.float32(above))  # (groups, rows)
        reader.output[0] = f"{out}.low"
        nodes = [
            helper.make_node("MatMul", [x, sums], [f"{out}.sums"]),
            helper.make_node("MatMul", [f"{out}.sums", scale], [f"{out}.missing"]),
            helper.make_node("Add", [f"{out}.low", f"{out}.missing"], [out]),
        ]
        place = list(self.graph.node).index(reader) + 1
        for node in reversed(nodes):
            self.graph.node.insert(place, node)

    def _look_up(self, gather: Any, name: str, module: PackedModule) -> None:
        """Rows of bytes, looked up, shifted and masked into levels, each above its middle or its zero point."""
        from onnx import helper

        bits, (step, above) = BITS[module.spec.code_book], STEPS.get(module.spec.code_book, (1, 0))
        levels = (module.packed.levels().numpy().astype(np.int16) - above) // step
        columns, per_byte, ids = module.spec.columns, 8 // bits, gather.input[1]
        groups = module.spec.storage.groups
        zero = module.packed.row_zeros()
        middle = 1 << (bits - 1) if zero is None else 0
        padded = np.pad(levels, ((0, 0), (0, -columns % per_byte)))
        self._constant(f"{name}.bytes", _packed(padded + middle, bits).reshape(len(levels), -1))
        self._constant(f"{name}.scale", module.packed.row_scales().numpy() * np.float32(step))
        self._constant(f"{name}.shifts", np.arange(0, 8, bits, dtype=np.uint8))
        self._constant(f"{name}.mask", np.array((1 << bits) - 1, dtype=np.uint8))
        if zero is None:
            self._constant(f"{name}.middle", np.array(middle - above / step, dtype=np.float32))
        else:
            self._constant(f"{name}.zeros", zero.numpy())
        self._constant(f"{name}.last", np.array([-1]))
        self._constant(f"{name}.flat", np.array([0, 0, -1]))
        self._constant(f"{name}.groups", np.array([0, 0, groups, columns // groups]))
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
            ("Reshape", ["", f"{name}.groups"], {}),
            ("Sub", ["", f"{name}.middle" if zero is None else f"{out}.zero"], {}),
            ("Mul", ["", f"{out}.scale"], {}),
        ]
        nodes, before = [], ""
        for kind in ("scale",) if zero is None else ("scale", "zero"):  # (batch, length, groups, 1)
            values = f"{name}.{'zeros' if kind == 'zero' else kind}"
            nodes.append(helper.make_node("Gather", [values, ids], [f"{out}.{kind}.flat"]))
            nodes.append(helper.make_node("Unsqueeze", [f"{out}.{kind}.flat", f"{name}.last"], [f"{out}.{kind}"]))
        for number, (kind, inputs, settings) in enumerate(steps):
            after = f"{out}.{number}"
            nodes.append(helper.make_node(kind, [given or before for given in inputs], [after], **settings))
            before = after
        nodes.append(helper.make_node("Reshape", [before, f"{name}.flat"], [out]))
        place = list(self.graph.node).index(gather)
        self.graph.node.remove(gather)
        for node in reversed(nodes):
            self.graph.node.insert(place, node)

    def _constant(self, name: str, values: np.ndarray) -> None:
        from onnx import numpy_helper

        if all(initializer.name != name for initializer in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _multiplies(node: Any, name: str, transposed: bool) -> bool:
    """Whether a node is a linear layer with this weight, (rows, columns) or transposed, and nothing more."""
    given = {one.name: one.i if one.name.startswith("trans") else one.f for one in node.attribute}
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": int(not transposed)}
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    is_plain = node.op_type in ("MatMul", "Gemm") and {**usual, **given} == plain
    return is_plain and [place for place, given_name in enumerate(node.input) if given_name == name] == [1]


def _packed(levels: np.ndarray, bits: int) -> np.ndarray:
    """Integers of so many bits, two's complement, several to a byte: the first lowest, the last byte filled up."""
    per_byte = 8 // bits
    codes = np.pad(levels.astype(np.int16).reshape(-1), (0, -levels.size % per_byte)) & ((1 << bits) - 1)
    places = codes.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.int16)
    return np.bitwise_or.reduce(places, axis=1).astype(np.uint8)


def _key(weight: np.ndarray) -> bytes:
    """What tells weights apart: their values, by rows."""
    return hashlib.sha256(np.ascontiguousarray(weight, dtype=np.float32).tobytes()).digest()

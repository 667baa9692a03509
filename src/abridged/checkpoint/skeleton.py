"""Between a stock model and a compressed one: swapping in packed modules, tying them, and naming their tensors."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.files import TensorEntry
from abridged.checkpoint.format import (
    AttentionSpec,
    EmbeddingSpec,
    KroneckerSpec,
    LinearSpec,
    MatrixSpec,
    ModuleSpec,
    QuantizationSpec,
)
from abridged.checkpoint.resize import resize
from abridged.errors import AbridgedError
from abridged.families import anatomy_of
from abridged.runtime.attention import ROLES, QuantizedAttention
from abridged.runtime.kronecker import build_factored
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule, build_input_quantizer

SAFETENSORS_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


def build_module(spec: ModuleSpec) -> nn.Module:
    """An empty module for a specification, on the default device."""
    if isinstance(spec, LinearSpec):
        return PackedLinear(spec)
    if isinstance(spec, EmbeddingSpec):
        return PackedEmbedding(spec)
    if isinstance(spec, KroneckerSpec):
        bias = nn.Parameter(torch.empty(spec.rows)) if spec.bias else None
        module: nn.Module = build_factored(spec.factors, spec.reads == "embedding", bias)
        module.error = spec.error  # type: ignore[assignment]
        return module
    return QuantizedAttention(*(build_input_quantizer(getattr(spec, role)) for role in ROLES))


def scope(model: nn.Module, spec: QuantizationSpec) -> QuantizationSpec:
    """The specification as seen from ``model``, which may be the base of the model that was saved.

    ``AutoModel.from_pretrained`` on a causal language model's directory builds its base alone: the paths lose their
    prefix, and modules outside the base (the head) drop out.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    paths = set(spec.modules)
    paths |= set(spec.shapes.sizes) if spec.shapes else set()
    if prefix == "." or hasattr(model, prefix[:-1]) or not any(path.startswith(prefix) for path in paths):
        return spec
    modules = {path[len(prefix) :]: module for path, module in spec.modules.items() if path.startswith(prefix)}
    for path, module in modules.items():
        if isinstance(module, (MatrixSpec, KroneckerSpec)) and module.tied:
            modules[path] = module.model_copy(update={"tied": module.tied.removeprefix(prefix)})
    shapes = None if spec.shapes is None else spec.shapes.below(prefix)
    return spec.model_copy(update={"modules": modules, "shapes": shapes})


def install(model: Any, spec: QuantizationSpec) -> None:
    """Cut the model to ``spec``'s sizes, and put empty packed modules at the places that it names.

    Raises :class:`AbridgedError` where the model has no such module or one of another kind, shape or bias.
    """
    if spec.shapes is not None:
        resize(model, spec.shapes)
        if type(model).__name__ in (model.config.architectures or []):
            anatomy_of(model)  # sizes that do not fit each other end here
    for path, module_spec in sorted(spec.modules.items(), key=lambda item: item[0].count(".")):  # factors come last
        try:
            stock = model.get_submodule(path)
        except AttributeError:
            raise AbridgedError(f"quantization_config: the model has no module {path}") from None
        if isinstance(module_spec, AttentionSpec):
            stock.attention_quantizers = build_module(module_spec)
            continue
        _check_stock(path, stock, module_spec)
        parent, _, name = path.rpartition(".")
        module: Any = build_module(module_spec)
        if isinstance(stock, nn.Embedding):
            module.embed_scale = getattr(stock, "embed_scale", 1.0)
        setattr(model.get_submodule(parent), name, module)


def _check_stock(path: str, stock: nn.Module, spec: LinearSpec | EmbeddingSpec | KroneckerSpec) -> None:
    kind = spec.reads if isinstance(spec, KroneckerSpec) else spec.kind
    fits = isinstance(stock, nn.Embedding if kind == "embedding" else (nn.Linear, Conv1D))
    if not fits:
        raise AbridgedError(f"quantization_config: {path} is a {type(stock).__name__}, not a stock {kind}")
    weight: Any = stock.weight
    shape = tuple(weight.shape)[:: -1 if isinstance(stock, Conv1D) else 1]
    if shape != (spec.rows, spec.columns):
        raise AbridgedError(
            f"quantization_config: {path} is {spec.rows}x{spec.columns}, config.json makes it {shape[0]}x{shape[1]}"
        )
    if not isinstance(spec, EmbeddingSpec) and spec.bias != (getattr(stock, "bias", None) is not None):
        raise AbridgedError(f"quantization_config: {path} is {'with' if spec.bias else 'without'} a bias, unlike stock")


def declare_ties(model: Any, spec: QuantizationSpec) -> None:
    """Tell transformers what tensors tied modules share, so that it ties them and writes them once.

    Where a module is factored, its factors are tied in the place of its weight.
    """
    owners = {f"{path}.weight": f"{owner}.weight" for path, owner in spec.tied_modules().items()}
    declared = getattr(model, "all_tied_weights_keys", {})
    for name, source in owners.items():
        if declared.get(name) != source:
            raise AbridgedError(f"quantization_config ties {name} to {source}, config.json does not")
    compressed = {f"{path}.weight" for path in (*spec.matrices(), *spec.factored())}
    for name, source in declared.items():
        if name in compressed and owners.get(name) != source:
            raise AbridgedError(f"config.json ties {name} to {source}, quantization_config does not")
    gone = {f"{path}.weight" for path in spec.factored()}
    for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
        before = getattr(model, attribute, None) or {}
        kept = {name: source for name, source in before.items() if name not in gone}
        setattr(model, attribute, {**kept, **spec.tied_tensors()})


def share_tied(model: nn.Module, spec: QuantizationSpec) -> None:
    """Let tied modules hold the very parameters of their owners."""
    for name, owner in spec.tied_tensors().items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, model.get_parameter(owner))


def stored_tensors(model: nn.Module, spec: QuantizationSpec) -> dict[str, Tensor]:
    """The tensors of a compressed model in the dtypes in which they are stored, each tied one once, under its owner.

    Scales go to their ``scale_dtype``, other floats to ``unquantized_dtype``; codes and the state of activation
    quantisers stay as they are.
    """
    state = model.state_dict()
    for name in getattr(model, "all_tied_weights_keys", {}):
        state.pop(name, None)
    for name in may_be_missing(model):  # what a model makes as zeros takes no room while it is zeros
        if name in state and not state[name].is_meta and not bool(state[name].any()):
            del state[name]
    return {name: tensor.to(stored_dtype(model, spec, name, tensor)) for name, tensor in state.items()}


def may_be_missing(model: Any) -> list[str]:
    """The buffers that the model's class makes as zeros where a checkpoint lacks them (BART's `final_logits_bias`)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return [name for name, _ in model.named_buffers() if any(re.search(pattern, name) for pattern in patterns)]


def stored_dtype(model: nn.Module, spec: QuantizationSpec, name: str, tensor: Tensor) -> torch.dtype:
    path, _, attribute = name.rpartition(".")
    module_spec = spec.modules.get(path)
    if isinstance(module_spec, (LinearSpec, EmbeddingSpec)) and attribute in ("weight", "weight_scale"):
        return tensor.dtype if attribute == "weight" else getattr(torch, module_spec.scale_dtype)
    quantizer_state = any(part in ("input_quantizer", "attention_quantizers") for part in path.split("."))
    if quantizer_state or not tensor.is_floating_point():
        return tensor.dtype
    return getattr(torch, spec.unquantized_dtype)


def check_tensors(model: nn.Module, spec: QuantizationSpec, tensors: dict[str, TensorEntry]) -> None:
    """Raise :class:`AbridgedError` unless the files hold the tensors that the model wants, and no others.

    model: compressed, on the meta device, ties declared.
    """
    expected = {
        name: (SAFETENSORS_DTYPES[stored_dtype(model, spec, name, tensor)], tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in getattr(model, "all_tied_weights_keys", {})
    }
    for name in may_be_missing(model):
        if name not in tensors:
            expected.pop(name, None)
    if missing := sorted(set(expected) - set(tensors)):
        raise AbridgedError(f"the weights lack {missing[0]}{_and_more(missing)}")
    if extra := sorted(set(tensors) - set(expected)):
        raise AbridgedError(f"the weights hold {extra[0][:80]!r}{_and_more(extra)}, which the model does not have")
    for name, (dtype, shape) in expected.items():
        if (tensors[name].dtype, tensors[name].shape) != (dtype, shape):
            raise AbridgedError(
                f"{name} is {tensors[name].dtype} of {list(tensors[name].shape)}, expected {dtype} of {list(shape)}"
            )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def packed_modules(model: nn.Module) -> dict[str, PackedModule]:
    """The packed modules of a model by path, packed factors among them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedModule)}

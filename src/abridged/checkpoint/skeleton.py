"""Between a stock model and a compressed one: swapping in packed modules, tying them, and naming their tensors."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightRenaming
from transformers.pytorch_utils import Conv1D

from abridged import families
from abridged.checkpoint.files import TensorEntry
from abridged.checkpoint.resize import find, resize, size_of
from abridged.core.errors import AbridgedError
from abridged.runtime.attention import ROLES, QuantizedAttention
from abridged.runtime.kronecker import build_factored
from abridged.runtime.modules import PackedEmbedding, PackedLinear, PackedModule, build_input_quantizer
from abridged.runtime.weight import StandIn
from abridged.storage.compressed import record
from abridged.storage.format import (
    FILE_NAMES,
    GUARDED,
    AttentionSpec,
    EmbeddingSpec,
    KroneckerSpec,
    LinearSpec,
    MatrixSpec,
    ModuleSpec,
    QuantizationSpec,
)
from abridged.storage.view import View

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
        return build_factored(spec.factors, spec.reads == "embedding", bias)
    return QuantizedAttention(*(build_input_quantizer(getattr(spec, role)) for role in ROLES))


def scope(model: Any, spec: QuantizationSpec) -> QuantizationSpec:
    """The specification as seen from ``model``, which may be another one around the same body than was saved.

    `AutoModel` on the directory of a causal language model builds its body alone, whose paths have no prefix (or the
    other way about); under another head, what is of the old one drops out.
    """
    named = model.config.architectures
    if not named or type(model).__name__ in named:
        return spec
    prefix, own, wholes = f"{model.base_model_prefix}.", dict(model.named_modules()), spec.wholes()
    is_body = model.base_model is model

    def place(path: str) -> str | None:
        whole = wholes.get(path, path)
        for form in (whole, whole.removeprefix(prefix), prefix + whole):
            if form in own and (
                is_body or form.startswith(prefix) or _is_same_head(own[form], spec.modules.get(whole))
            ):
                return form + path[len(whole) :]
        return None

    modules: dict[str, ModuleSpec] = {}
    for path, module in spec.modules.items():
        if new := place(path):
            tied = getattr(module, "tied", None)
            modules[new] = module.model_copy(update={"tied": place(tied)}) if tied else module
    for name, source in model.all_tied_weights_keys.items():
        path, owner = name.removesuffix(".weight"), source.removesuffix(".weight")
        if owner in modules and path not in modules:
            modules[path] = _tied_to(owner, modules[owner], path, own[path])
    shapes = None if spec.shapes is None else spec.shapes.renamed(place)
    return spec.model_copy(update={"modules": modules, "shapes": shapes, "view": None})


def _tied_to(owner: str, spec: ModuleSpec, path: str, stock: nn.Module) -> ModuleSpec:
    """How a module that was not saved is stored where it has the weight of one that was."""
    if not isinstance(spec, (LinearSpec, EmbeddingSpec)):
        raise AbridgedError(f"{path} would have the weight of {owner}, which is stored in factors: load another head")
    if isinstance(stock, nn.Embedding):
        return EmbeddingSpec(kind="embedding", tied=owner, **spec.shared())
    bias = getattr(stock, "bias", None) is not None
    return LinearSpec(kind="linear", bias=bias, tied=owner, input=None, **spec.shared())


def _is_same_head(stock: nn.Module, spec: ModuleSpec | None) -> bool:
    return spec is None or isinstance(spec, AttentionSpec) or size_of(stock) == (spec.rows, spec.columns)


def take_view(model: Any, view: View) -> None:
    """Let a stock model be described as its checkpoint says.

    Raises :class:`AbridgedError` where the model has no such modules, or of other sizes.
    """
    for matrix in view.matrices:
        size = size_of(find(model, matrix.name))
        if size != (matrix.rows, matrix.columns):
            own, stock = f"{matrix.rows}x{matrix.columns}", "x".join(map(str, size or ()))
            raise AbridgedError(f"quantization_config: view: {matrix.name} is {own}, config.json makes it {stock}")
    for path in (*view.blocks, *view.attentions, *view.norms, *view.positions, *view.writers, *view.readers):
        find(model, path)
    record(model, view=view)


def install(model: Any, spec: QuantizationSpec) -> None:
    """Cut the model to ``spec``'s sizes, and put empty packed modules at the places that it names.

    Raises :class:`AbridgedError` where the model has no such module or one of another kind, shape or bias.
    """
    if spec.shapes is not None:
        resize(model, spec.shapes)
        if type(model).__name__ in (model.config.architectures or []):
            families.view(model)  # sizes that do not fit each other end here
    kept = set(model._get_dtype_plan(torch.get_default_dtype()))  # what transformers loads in FP32 into a half model
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
            module.take_settings(stock)
        if set(path.split(".")) & kept:
            module.dtype = torch.float32
        setattr(model.get_submodule(parent), name, module)
    placed = {type(m).__name__ for m in model.modules() if isinstance(m, StandIn)}  # each whole on one device
    model._no_split_modules = {*(model._no_split_modules or ()), *placed}


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a skeleton the value of one parameter, which asks for no gradient, or buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


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
    """Tell transformers what parameters tied modules share, so that it ties them and writes them once.

    In the place of a weight stand the codes and scales of a packed module, and the factors of a factored one.
    """
    owners = {f"{path}.weight": f"{owner}.weight" for path, owner in spec.tied_modules().items()}
    declared = getattr(model, "all_tied_weights_keys", {})
    for name, source in owners.items():
        if declared.get(name) != source:
            raise AbridgedError(f"quantization_config ties {name} to {source}, config.json does not")
    compressed = {f"{path}.weight" for path in (*spec.matrices(), *spec.factored())}
    for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
        before = getattr(model, attribute, None) or {}
        # what the config ties, and the checkpoint does not, is a weight of its own, which transformers could not say
        kept = {name: source for name, source in before.items() if not {name, source} & compressed}
        setattr(model, attribute, {**kept, **spec.tied_tensors()})


def refuse_split(spec: QuantizationSpec, device_map: Any) -> None:
    """Raise :class:`AbridgedError` where a device map leaves one of two modules with the same weight on the disk."""
    if not isinstance(device_map, dict):
        return

    def place(path: str) -> Any:
        known = [key for key in device_map if not key or path == key or path.startswith(f"{key}.")]
        return device_map[max(known, key=len)] if known else None

    for path, owner in spec.tied_modules().items():
        if place(path) != place(owner) and "disk" in (place(path), place(owner)):
            raise AbridgedError(f"{path} has the weight of {owner}: device_map must leave both on the disk, or neither")


def declare_unsaved(model: Any, spec: QuantizationSpec) -> None:
    """Let transformers write what a model's class makes itself (Marian's table of sines) where it was cut."""
    cut = {f"{path}.weight" for path in spec.shapes.sizes} if spec.shapes is not None else set()
    model._keys_to_ignore_on_save = set(getattr(model, "_keys_to_ignore_on_save", None) or ()) - cut
    if spec.guard is not None:
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), f"^{GUARD}$"}


def share_tied(model: nn.Module, spec: QuantizationSpec) -> None:
    """Let tied modules hold the very parameters of their owners."""
    for name, owner in spec.tied_tensors().items():
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, model.get_parameter(owner))


def stored_tensors(model: nn.Module, spec: QuantizationSpec) -> dict[str, Tensor]:
    """The tensors of a compressed model by the names and in the dtypes of a file, each tied one once, under its owner.

    Scales go to their ``scale_dtype``, other floats to ``unquantized_dtype``; codes and the state of activation
    quantisers stay as they are.
    """
    state = model.state_dict()
    for name in (*getattr(model, "all_tied_weights_keys", ()), *_unsaved(model)):
        state.pop(name, None)
    for name in may_be_missing(model):  # what a model makes as zeros takes no room while it is zeros
        if name in state and not state[name].is_meta and not bool(state[name].any()):
            del state[name]
    stored = {name: tensor.to(stored_dtype(model, spec, name, tensor)) for name, tensor in state.items()}
    files = {file_name(spec, name): tensor for name, tensor in stored.items()}
    return files if spec.guard is None else {**files, spec.guard: torch.empty(0, dtype=torch.uint8)}


def choose_guard(model: Any, spec: QuantizationSpec) -> str | None:
    """The tensor in whose place nothing is to be stored, so that a process without abridged fails on it.

    None where packed codes do that, within the base of the model too, which may be loaded alone. Of a model of factors,
    of fewer parts or of attention in few bits the names that a stock one asks for may all be there, or be missing, of
    which transformers only warns.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    inner = prefix if prefix != "." and hasattr(model, prefix[:-1]) else ""
    wholes = spec.wholes()
    if any(path.startswith(inner) and path not in wholes and not own.tied for path, own in spec.matrices().items()):
        return None
    ours = (*getattr(model, "all_tied_weights_keys", ()), *_unsaved(model), *may_be_missing(model))
    names = [name for name, parameter in model.named_parameters() if name not in ours and parameter.numel()]
    packed = {f"{path}." for path in (*spec.matrices(), *spec.factored())}
    names = [name for name in names if name.startswith(inner) and not any(name.startswith(path) for path in packed)]
    if not names:
        raise AbridgedError("there is no tensor to keep a process without abridged from reading this checkpoint")
    return min(names, key=lambda name: (model.get_parameter(name).numel(), name))


def file_name(spec: QuantizationSpec, name: str) -> str:
    """What a file calls the tensor that a model calls `name`."""
    if name == spec.guard:
        return GUARDED + name
    path, _, attribute = name.rpartition(".")
    return (
        f"{path}.{FILE_NAMES[attribute]}"
        if isinstance(spec.modules.get(path), MatrixSpec) and attribute in FILE_NAMES
        else name
    )


GUARD = "abridged_guard"
"""What the empty place of a guard is called while a model loads, which has no such parameter."""


class FileNames(WeightRenaming):
    """Tells transformers, which asks for one name after another as it loads, what a model calls a file's tensors."""

    __slots__ = ("_guards", "_packed")

    def __init__(self, model: Any, spec: QuantizationSpec) -> None:
        super().__init__(*([name] for name in next(iter(FILE_NAMES.items()))[::-1]))
        prefix = (
            f"{getattr(model, 'base_model_prefix', '')}."  # a base may load what a whole model wrote, or the reverse
        )
        forms = lambda path: (path, prefix + path, path.removeprefix(prefix))  # noqa: E731
        self._packed = {form for path in spec.matrices() for form in forms(path)}
        self._guards = set() if spec.guard is None else set(forms(spec.guard))

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        if source_key in self._guards:
            return GUARD, None
        if source_key.startswith(GUARDED) and source_key.removeprefix(GUARDED) in self._guards:
            return source_key.removeprefix(GUARDED), None
        path, _, name = source_key.rpartition(".")
        ours = {value: key for key, value in FILE_NAMES.items()}.get(name)
        return (source_key, None) if ours is None or path not in self._packed else (f"{path}.{ours}", name)


def _unsaved(model: Any) -> set[str]:
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())


def may_be_missing(model: Any) -> list[str]:
    """The buffers that the model's class makes as zeros where a checkpoint lacks them (BART's `final_logits_bias`)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return [name for name, _ in model.named_buffers() if any(re.search(pattern, name) for pattern in patterns)]


def stored_dtype(model: nn.Module, spec: QuantizationSpec, name: str, tensor: Tensor) -> torch.dtype:
    path, _, attribute = name.rpartition(".")
    module_spec = spec.modules.get(path)
    if isinstance(module_spec, (LinearSpec, EmbeddingSpec)) and attribute in FILE_NAMES:
        return getattr(torch, module_spec.scale_dtype) if attribute == "scales" else tensor.dtype
    quantizer_state = any(part in ("input_quantizer", "attention_quantizers") for part in path.split("."))
    if quantizer_state or not tensor.is_floating_point():
        return tensor.dtype
    return getattr(torch, spec.unquantized_dtype)


def expected_tensors(model: nn.Module, spec: QuantizationSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The safetensors dtype and shape of every tensor that files of a compressed model hold, by its name there.

    model: compressed, on whatever device, ties declared.
    """
    expected = {
        file_name(spec, name): (SAFETENSORS_DTYPES[stored_dtype(model, spec, name, tensor)], tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in getattr(model, "all_tied_weights_keys", {}) and name not in _unsaved(model)
    }
    return expected if spec.guard is None else {**expected, spec.guard: ("U8", (0,))}


def check_tensors(model: nn.Module, spec: QuantizationSpec, tensors: dict[str, TensorEntry]) -> None:
    """Raise :class:`AbridgedError` unless the files hold the tensors that the model wants, and no others.

    model: compressed, on the meta device, ties declared.
    """
    expected = expected_tensors(model, spec)
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

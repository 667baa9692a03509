"""From a trained student to the packed model that a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abridged import families
from abridged.checkpoint.hf import AbridgedConfig, AbridgedQuantizer, keep_vocabulary, model_view
from abridged.checkpoint.skeleton import build_module, declare_ties, declare_unsaved, install, put, share_tied
from abridged.core.errors import AbridgedError
from abridged.runtime.attention import IMPLEMENTATION, ROLES, QuantizedAttention
from abridged.runtime.decoding import install as install_steps
from abridged.runtime.kronecker import KroneckerEmbedding, factored_modules
from abridged.storage.compressed import compressed_of
from abridged.storage.format import (
    ActivationSpec,
    AttentionSpec,
    EmbeddingSpec,
    KroneckerSpec,
    LinearSpec,
    ModuleSpec,
    QuantizationSpec,
)
from abridged.storage.packing import pack, pack_zeros
from abridged.storage.view import View


def pack_model(student: Any, copied: bool = True) -> Any:
    """A packed copy of a trained model, in evaluation mode and on the same device; the student stays as it is.

    student: a ``PreTrainedModel`` with the modules of ``abridged.methods.quantization`` in it: whatever has a
    ``source`` whose ``stored()`` gives levels and scales and whose ``storage`` says how they lie. Master weights are
    never copied. Factored modules stay what they are, around factors that are packed or not. Parameters that are not
    quantised will be stored in the type that its record says (FP32 if none), a model that was cut at the sizes that it
    says (``Compressed``). The copy answers as the checkpoint will, and can be saved with ``save_pretrained`` or
    ``save_checkpoint``. With ``copied`` false the student itself becomes it, for which there may be no room twice.
    Raises :class:`AbridgedError` if nothing in the model is compressed, or a weight is not finite.
    """
    if hasattr(student, "hf_quantizer") and student.hf_quantizer is not None:
        return student  # it is packed already
    specs, memo = _packed_modules(student)
    if not specs and not compressed_of(student).is_smaller:
        raise AbridgedError("nothing in this model is compressed, so there is nothing to pack")
    spec = _spec(student, specs)
    if not copied:
        for path, module in [*student.named_modules()]:
            if id(module) in memo:
                student.set_submodule(path, memo[id(module)])
        return _dressed(student, spec)
    # deepcopy takes what memo holds for the quantised modules instead of copying them
    return _dressed(copy.deepcopy(student, memo), spec)


def _packed_modules(student: Any) -> tuple[dict[str, ModuleSpec], dict[int, Any]]:
    """How each module is stored, and {id of a module: what takes its place in a packed copy}."""
    specs, memo = specs_of(student), {}
    for path, factored in factored_modules(student).items():
        if not all(p.is_meta or bool(torch.isfinite(p).all()) for p in factored.parameters()):
            raise AbridgedError(f"the factors of {path} are not all finite (NaN or infinity)")
    for path, module in student.named_modules():
        if _is_quantized(module):
            memo[id(module)] = _packed(path, module, specs[path])
        elif isinstance(module, QuantizedAttention):
            memo[id(module)] = QuantizedAttention(*(_frozen(getattr(module, role)) for role in ROLES)).eval()
    return specs, memo


def _spec(student: Any, specs: dict[str, ModuleSpec]) -> QuantizationSpec:
    done = compressed_of(student)
    dtype = done.unquantized_dtype or "float32"
    return QuantizationSpec(modules=specs, unquantized_dtype=dtype, shapes=done.shapes, view=_view(student))


def _dressed(model: Any, spec: QuantizationSpec) -> Any:
    """A model of packed modules as it answers, and saves itself, once it is loaded."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    declare_ties(model, spec)
    declare_unsaved(model, spec)
    share_tied(model, spec)
    config = AbridgedConfig(spec)
    model.config.quantization_config = config
    model.hf_quantizer = AbridgedQuantizer(config)
    model._weight_conversions = []  # the names of modules are those of files
    model.is_quantized, model.quantization_method = True, config.quant_method
    keep_vocabulary(model)
    install_steps(model.eval(), model_view(model))  # measured at the speed, and in the arithmetic, of the loaded one
    return model


@dataclass(frozen=True)
class PackedPart:
    """Some modules of a student as they are stored, and the values of what is in and beside them, by name."""

    specs: dict[str, ModuleSpec]
    tensors: dict[str, Tensor]


def pack_part(student: Any, names: Iterable[str] | None = None) -> tuple[PackedPart, dict[str, nn.Module]]:
    """Pack what a student holds of itself, while the rest of it is on the meta device.

    names: of the modules that are packed, and of nothing beside them; None: all that has values.

    Returns:
        The part, and the packed modules by path, which may take the places of the student's.

    Raises:
        AbridgedError: a weight is not finite.
    """
    specs, memo = _packed_modules(student)
    wanted = None if names is None else set(names)
    specs = {path: spec for path, spec in specs.items() if wanted is None or _within(f"{path}.", wanted)}
    modules = {path: memo[id(own)] for path, own in student.named_modules() if path in specs and id(own) in memo}
    model, spec = copy.deepcopy(student, memo), QuantizationSpec(modules=specs)
    share_tied(model, spec)
    tied = spec.tied_tensors()
    tensors = {
        name: tensor.detach().cpu().clone()
        for name, tensor in model.state_dict().items()
        if not tensor.is_meta and name not in tied and (wanted is None or _within(name, wanted))
    }
    return PackedPart(specs, tensors), modules


def _within(name: str, paths: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in paths for i in range(1, len(parts)))


def assemble(model: Any, parts: Iterable[PackedPart]) -> Any:
    """A packed model, such as `pack_model` makes, of its parts.

    model: stock, on the meta device; its record says what was done to the student. It is changed in place.
    """
    specs: dict[str, ModuleSpec] = {}
    tensors: dict[str, Tensor] = {}
    for part in parts:
        specs |= part.specs
        tensors |= part.tensors
    spec = _spec(model, {path: specs[path] for path, _ in model.named_modules() if path in specs} | specs)
    with torch.device("meta"):
        install(model, spec)
    if any(isinstance(one, AttentionSpec) for one in specs.values()):
        model.set_attn_implementation(IMPLEMENTATION)
    for name, tensor in tensors.items():
        put(model, name, tensor)
    for name, owner in getattr(model, "all_tied_weights_keys", {}).items():
        path, _, leaf = name.rpartition(".")
        held = model.get_submodule(path)._parameters
        if leaf in held and held[leaf].is_meta and owner in dict(model.named_parameters()):
            held[leaf] = model.get_parameter(owner)
    return _dressed(model, spec)


def _view(student: Any) -> View | None:
    """What a checkpoint records of the model; None of a type that cannot be described."""
    try:
        return families.whole_view(student)
    except AbridgedError:
        return None


def specs_of(student: Any) -> dict[str, ModuleSpec]:
    """How each module of a student that methods have changed is stored, by its path; no values are read.

    What is tied is known by the weight that is shared, of factors by that of the first.
    """
    specs: dict[str, ModuleSpec] = {}
    owners: dict[str, dict[int, str]] = {"factored": {}, "quantized": {}}

    def tied(kind: str, shared: Any, path: str) -> str | None:
        owner = owners[kind].setdefault(id(shared), path)
        return None if owner == path else owner

    for path, module in factored_modules(student).items():
        left = next(iter(module.pairs()))[1].left
        specs[path] = KroneckerSpec.of(
            module.factors,
            isinstance(module, KroneckerEmbedding),
            bias=getattr(module, "bias", None) is not None,
            tied=tied("factored", left.source if hasattr(left, "source") else left.weight, path),
            error=compressed_of(student).errors.get(path),
        )
    for path, module in student.named_modules():
        if isinstance(module, QuantizedAttention):
            roles = {role: ActivationSpec(**getattr(module, role).describe()) for role in ROLES}
            specs[path.removesuffix(".attention_quantizers")] = AttentionSpec(kind="attention", **roles)
        elif _is_quantized(module):
            source, owner = module.source, tied("quantized", module.source, path)
            lies = source.storage, source.settings.scale_dtype
            if hasattr(module, "input_quantizer"):
                given = None if module.input_quantizer is None else ActivationSpec(**module.input_quantizer.describe())
                bias = module.bias is not None
                specs[path] = LinearSpec.of(*lies, kind="linear", bias=bias, tied=owner, input=given)
            else:
                specs[path] = EmbeddingSpec.of(*lies, kind="embedding", tied=owner)
    return specs


def _is_quantized(module: Any) -> bool:
    return hasattr(module, "source") and hasattr(module.source, "stored")


def _packed(path: str, module: Any, spec: Any) -> nn.Module:
    """The packed form of one quantised module, empty of weights if it is tied to an earlier one."""
    packed: Any = build_module(spec)
    if spec.tied is None:
        stored = module.source.stored()
        if not bool(torch.isfinite(stored.scale).all()):
            raise AbridgedError(f"a scale of {path} is not finite")
        packed.codes.data = pack(stored.levels, stored.code_book, stored.packing)
        if stored.zero is not None:
            packed.zeros.data = pack_zeros(stored.zero, stored.code_book, stored.packing)
        scale = stored.scale.detach().flatten()
        packed.scales.data = scale.to(getattr(torch, stored.scale_dtype)).float()
    if isinstance(spec, LinearSpec):
        packed.input_quantizer = _frozen(module.input_quantizer)
        if spec.bias:
            packed.bias.data = module.bias.detach().clone()
    else:
        packed.take_settings(module)
    return packed.eval()


def _frozen(quantizer: Any) -> Any:
    """An activation quantiser as it is stored: a learned clip becomes a fixed scale."""
    return quantizer.static() if hasattr(quantizer, "static") else quantizer

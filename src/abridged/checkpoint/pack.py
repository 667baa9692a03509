"""From a trained student to the packed model that a checkpoint holds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from abridged.checkpoint.code_books import storage_bits
from abridged.checkpoint.format import (
    ActivationSpec,
    AttentionSpec,
    EmbeddingSpec,
    KroneckerSpec,
    LinearSpec,
    ModuleSpec,
    QuantizationSpec,
)
from abridged.checkpoint.hf import AbridgedConfig, AbridgedQuantizer
from abridged.checkpoint.packing import pack
from abridged.checkpoint.skeleton import build_module, declare_ties, share_tied
from abridged.errors import AbridgedError
from abridged.runtime.attention import ROLES, QuantizedAttention
from abridged.runtime.kronecker import Factored, KroneckerEmbedding, factored_modules


def pack_model(student: Any) -> Any:
    """A packed copy of a trained model, in evaluation mode and on the same device; the student stays as it is.

    student: a ``PreTrainedModel`` with the modules of ``abridged.methods.quantization`` in it: whatever has a
    ``source`` whose ``stored()`` gives levels and scales. Master weights are never copied. Factored modules stay what
    they are, around factors that are packed or not. Parameters that are not quantised will be stored in
    ``student.unquantized_dtype`` (FP32 if it has none). The copy answers as the checkpoint will, and can be saved with
    ``save_pretrained`` or ``save_checkpoint``. A model that was cut is stored at its sizes, ``student.shapes``.
    Raises :class:`AbridgedError` if nothing in the model is compressed, or a weight is not finite.
    """
    specs: dict[str, ModuleSpec] = {}
    memo: dict[int, Any] = {}
    owners: dict[int, str] = {}
    wholes: dict[int, str] = {}
    for path, factored in factored_modules(student).items():
        specs[path] = _factored(path, factored, wholes)
    for path, module in student.named_modules():
        if hasattr(module, "source") and hasattr(module.source, "stored"):
            specs[path], memo[id(module)] = _packed(path, module, owners, specs)
        elif isinstance(module, QuantizedAttention):
            attention = path.removesuffix(".attention_quantizers")
            frozen = QuantizedAttention(*(_frozen(getattr(module, role)) for role in ROLES))
            roles = {role: _activation_spec(getattr(frozen, role)) for role in ROLES}
            specs[attention], memo[id(module)] = AttentionSpec(kind="attention", **roles), frozen.eval()
    shapes = getattr(student, "shapes", None)
    if not specs and shapes is None and not hasattr(student, "layers_before"):
        raise AbridgedError("nothing in this model is compressed, so there is nothing to pack")
    dtype: Any = getattr(student, "unquantized_dtype", "float32")
    spec = QuantizationSpec(modules=specs, unquantized_dtype=dtype, shapes=shapes)
    # deepcopy takes what memo holds for the quantised modules instead of copying them
    model = copy.deepcopy(student, memo)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    declare_ties(model, spec)
    share_tied(model, spec)
    config = AbridgedConfig(spec)
    model.config.quantization_config = config
    model.hf_quantizer = AbridgedQuantizer(config)
    model.is_quantized, model.quantization_method = True, config.quant_method
    return model.eval()


def _packed(
    path: str, module: Any, owners: dict[int, str], specs: dict[str, ModuleSpec]
) -> tuple[LinearSpec | EmbeddingSpec, nn.Module]:
    """How one quantised module is stored, and its packed form (empty of weights if it is tied to an earlier one)."""
    source = module.source
    spec: LinearSpec | EmbeddingSpec
    owner = owners.setdefault(id(source), path)
    if owner == path:
        stored = source.stored()
        rows, columns = stored.levels.shape
        storage = {
            "rows": rows,
            "columns": columns,
            "code_book": stored.code_book,
            "packing": stored.packing,
            "bits": storage_bits(stored.code_book, stored.packing),
            "num_scales": stored.scale.numel(),
            "scale_dtype": stored.scale_dtype,
        }
    else:
        stored, storage = None, specs[owner].storage()  # type: ignore[union-attr]
    tied = None if owner == path else owner
    if _is_embedding(module):
        spec = EmbeddingSpec(kind="embedding", tied=tied, **storage)
    else:
        quantizer = _frozen(module.input_quantizer)
        spec = LinearSpec(
            kind="linear",
            bias=module.bias is not None,
            tied=tied,
            input=None if quantizer is None else _activation_spec(quantizer),
            **storage,
        )
    packed: Any = build_module(spec)
    if stored is not None:
        if not bool(torch.isfinite(stored.scale).all()):
            raise AbridgedError(f"a scale of {path} is not finite")
        packed.weight.data = pack(stored.levels, stored.code_book, stored.packing)
        scale = stored.scale.detach().flatten()
        packed.weight_scale.data = scale.to(getattr(torch, stored.scale_dtype)).float()
    if isinstance(spec, LinearSpec):
        packed.input_quantizer = quantizer
        if spec.bias:
            packed.bias.data = module.bias.detach().clone()
    else:
        packed.dtype_like = packed.dtype_like.to(packed.weight.device)
        packed.embed_scale = module.embed_scale
    return spec, packed.eval()


def _factored(path: str, module: Factored, owners: dict[int, str]) -> KroneckerSpec:
    """How one factored module is stored; what it is tied to is known by the weight of its first factor."""
    for parameter in module.parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise AbridgedError(f"the factors of {path} are not all finite (NaN or infinity)")
    _, pair = next(iter(module.pairs()))
    shared = pair.left.source if hasattr(pair.left, "source") else pair.left.weight
    owner = owners.setdefault(id(shared), path)
    factors, is_embedding = module.factors, isinstance(module, KroneckerEmbedding)
    return KroneckerSpec(
        kind="kronecker",
        reads="embedding" if is_embedding else "linear",
        left_rows=factors.left[0],
        left_columns=factors.left[1],
        right_rows=factors.right[0],
        right_columns=factors.right[1],
        rank=factors.rank,
        fused=factors.fused,
        bias=not is_embedding and module.bias is not None,
        tied=None if owner == path else owner,
        error=module.error,
    )


def _is_embedding(module: Any) -> bool:
    return not hasattr(module, "input_quantizer")


def _frozen(quantizer: Any) -> Any:
    """An activation quantiser as it is stored: a learned clip becomes a fixed scale."""
    return quantizer.static() if hasattr(quantizer, "static") else quantizer


def _activation_spec(quantizer: Any) -> ActivationSpec:
    return ActivationSpec(**quantizer.describe())

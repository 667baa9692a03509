"""Puts quantised modules into a model, calibrates them, and finds their parameters again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abridged.errors import AbridgedError
from abridged.methods.lockstep import in_lockstep
from abridged.methods.quantization.activations import LearnedActivation
from abridged.methods.quantization.compensate import compensate
from abridged.methods.quantization.modules import QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from abridged.methods.quantization.quantizers import Dynamic, LearnedScale
from abridged.runtime.activations import DynamicActivation
from abridged.runtime.attention import IMPLEMENTATION, ROLES, QuantizedAttention

if TYPE_CHECKING:
    from abridged.families import Anatomy
    from abridged.methods.base import Calibrate
    from abridged.methods.quantization.method import Quantize
    from abridged.methods.quantization.settings import ActivationSettings, WeightSettings


def prepare(model: nn.Module, anatomy: Any, calibrate: Calibrate, method: Quantize) -> None:
    """See `Quantize.prepare`. Inputs are calibrated before the weights change, on the model as it comes."""
    settings = settings_of(anatomy, method)
    if method.positions and not any(matrix.part == "positions" for matrix in anatomy.matrices):
        raise AbridgedError(f"methods.quantize.positions: the positions of {anatomy.model_type} cannot be quantised")
    matrices = [
        matrix
        for matrix in anatomy.matrices
        if settings[matrix.name].bits is not None and (matrix.part != "positions" or method.positions)
    ]
    inputs: dict[str, nn.Module | None] = {}
    for matrix in matrices:
        for path in (matrix.name, *matrix.tied):
            if is_embedding(model.get_submodule(path)):
                continue
            inputs[path] = input_quantizer(model.get_submodule(path), method.activations, matrix.input == "symmetric")
    install_attention(model, anatomy.attentions, method.activations)
    calibrate_inputs(model, inputs, calibrate)
    before = copy.deepcopy(model).requires_grad_(False) if method.compensate else None
    new = [matrix for matrix in matrices if install(model, matrix, settings[matrix.name], inputs)]
    layers = [matrix.name for matrix in new if matrix.part in ("attention", "ffn", "pooler")]
    if before is not None and layers:

        def take(path: str, moments: torch.Tensor, crossed: torch.Tensor | None) -> None:
            layer: Any = model.get_submodule(path)
            compensate(layer.source, moments, crossed)

        in_lockstep(model, before, layers, calibrate, take, "rounding, compensated")
    model.unquantized_dtype = method.unquantized  # type: ignore[assignment]


def settings_of(anatomy: Anatomy, method: Quantize) -> dict[str, WeightSettings]:
    """How each matrix is quantised, by its name.

    Raises AbridgedError for an exception that no matrix falls under.
    """
    unused = set(method.exceptions)
    found = {}
    for matrix in anatomy.matrices:
        fitting = [pattern for pattern in method.exceptions if matrix.is_called(pattern)]
        unused.difference_update(fitting)
        usual = method.embeddings if matrix.part in ("embedding", "positions", "head") else method.weights
        found[matrix.name] = method.exceptions[fitting[0]] if fitting else usual
    for pattern in method.exceptions:
        if pattern in unused:
            raise AbridgedError(f"methods.quantize.exceptions: the model has no matrix {pattern!r}")
    return found


def is_embedding(module: nn.Module) -> bool:
    """Whether a module looks up ids, in full precision or quantised."""
    return isinstance(module, (nn.Embedding, QuantizedEmbedding))


def input_quantizer(module: nn.Module, settings: ActivationSettings, symmetric: bool) -> nn.Module | None:
    """The quantiser for a module's input: the one it has if the settings are the same, a new one otherwise."""
    return _activation(getattr(module, "input_quantizer", None), settings, symmetric)


def _activation(present: nn.Module | None, settings: ActivationSettings, symmetric: bool) -> nn.Module | None:
    if settings.bits is None:
        return None
    if settings.quantizer == "dynamic":
        return DynamicActivation(settings.bits)
    if isinstance(present, LearnedActivation) and present.settings == settings and present.symmetric == symmetric:
        return present
    quantizer = LearnedActivation(settings, symmetric)
    quantizer.observing = True
    return quantizer


def install_attention(model: nn.Module, paths: list[str], settings: ActivationSettings) -> None:
    """Give the attention modules quantisers of their own, or take them away."""
    wanted = settings.attention and settings.bits is not None
    if not wanted and not any(hasattr(model.get_submodule(path), "attention_quantizers") for path in paths):
        return
    for path in paths:
        module = model.get_submodule(path)
        present = getattr(module, "attention_quantizers", None)
        if wanted:
            roles = [_activation(getattr(present, role, None), settings, role != "probabilities") for role in ROLES]
            device = next(module.parameters()).device
            module.attention_quantizers = QuantizedAttention(*(role.to(device) for role in roles if role is not None))
        elif present is not None:
            del module.attention_quantizers
    model.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]


def calibrate_inputs(model: nn.Module, inputs: dict[str, nn.Module | None], calibrate: Calibrate) -> None:
    """Let new learned quantisers see what comes into their modules, then set their clips."""
    device = next(model.parameters()).device
    observed = [module for module in model.modules() if isinstance(module, LearnedActivation) and module.observing]
    hooks = []
    for path, quantizer in inputs.items():
        if quantizer is not None:
            quantizer.to(device)
        if isinstance(quantizer, LearnedActivation) and quantizer.observing:
            module = model.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(_observe(quantizer)))
            observed.append(quantizer)
    if any(quantizer.settings.initial == "calibrated" for quantizer in observed):
        with torch.no_grad():
            calibrate(model)
    for hook in hooks:
        hook.remove()
    for quantizer in observed:
        quantizer.calibrate()


def _observe(quantizer: LearnedActivation) -> Any:
    return lambda module, inputs: quantizer.observe(inputs[0])


def install(model: nn.Module, matrix: Any, settings: WeightSettings, inputs: dict[str, nn.Module | None]) -> bool:
    """Replace the matrix's module, and those tied to it, by quantised ones around one weight.

    Returns whether it is quantised otherwise than before.
    """
    module = model.get_submodule(matrix.name)
    if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
        source = module.source
        changed = source.install(settings)
    else:
        changed = True
        weight = module.get_parameter("weight").detach()
        source = QuantizedWeight(weight.t() if matrix.transposed else weight, matrix.fused, settings, matrix.name)
    for path in (matrix.name, *matrix.tied):
        old = model.get_submodule(path)
        new: nn.Module
        if is_embedding(old):
            new = QuantizedEmbedding(source, getattr(old, "embed_scale", 1.0))
        else:
            new = QuantizedLinear(source, getattr(old, "bias", None), inputs[path])
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(old.training))
    return changed


def _quantization_parts(model: nn.Module) -> set[int]:
    """The ids of the parameters that the quantised modules store in a way of their own."""
    parts: set[int] = set()
    for module in model.modules():
        if isinstance(module, (QuantizedWeight, LearnedActivation)):
            parts.update(id(parameter) for parameter in module.parameters())
    return parts


@torch.no_grad()
def round_unquantized(model: nn.Module) -> None:
    """Round every parameter that is not quantised to FP16 values, in the type it has."""
    stored = _quantization_parts(model)
    for parameter in model.parameters():
        if id(parameter) not in stored:
            parameter.copy_(parameter.to(torch.float16))


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The learned scales and clips of a model."""
    groups: dict[str, list[nn.Parameter]] = {"scale": [], "clip": []}
    for module in model.modules():
        if isinstance(module, (Dynamic, LearnedScale)):
            groups["scale"] += module.parameters()
        elif isinstance(module, LearnedActivation):
            groups["clip"] += module.parameters()
    return groups

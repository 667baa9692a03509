"""Quantisation at work: puts quantised modules into a model, calibrates them, and finds their parameters again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from abridged.core.errors import AbridgedError
from abridged.methods.base import Attached
from abridged.methods.lockstep import in_lockstep
from abridged.methods.quantization.activations import LearnedActivation
from abridged.methods.quantization.gptq import Inputs, gptq
from abridged.methods.quantization.importance import CAP, Importance, importances
from abridged.methods.quantization.modules import FakeQuantizer, QuantizedEmbedding, QuantizedLinear, QuantizedWeight
from abridged.runtime.activations import DynamicActivation
from abridged.runtime.attention import IMPLEMENTATION, ROLES, QuantizedAttention, quantizers_of
from abridged.storage.compressed import Compressed, record

if TYPE_CHECKING:
    from abridged.families import View
    from abridged.methods.base import Calibrate
    from abridged.methods.quantization.method import Quantize
    from abridged.methods.quantization.settings import ActivationSettings, WeightSettings


class Quantization(Attached):
    """See `Quantize`. Its modules hold master weights, scales and clips: they are what is trained."""

    def __init__(self, settings: Quantize, model: nn.Module, view: View, calibrate: Calibrate) -> None:
        """Swap the view's matrices for quantised modules. Inputs are calibrated before the weights change, on the
        model as it comes.

        Raises AbridgedError for weights that are not finite and for groups that do not fit a matrix.
        """
        super().__init__(settings, model, view, calibrate)
        by_name = settings_of(view, settings)
        matrices = [
            matrix
            for matrix in view.matrices
            if by_name[matrix.name].bits is not None and (matrix.part != "positions" or settings.positions)
        ]
        inputs: dict[str, nn.Module | None] = {}
        for matrix in matrices:
            for path in (matrix.name, *matrix.tied):
                module = model.get_submodule(path)
                if not is_embedding(module):
                    present = getattr(module, "input_quantizer", None)
                    inputs[path] = activation(present, settings.activations, matrix.input == "symmetric")
        install_attention(model, view.attentions, settings.activations)
        calibrate_inputs(model, inputs, calibrate)
        parts = ("attention", "ffn", "pooler") if settings.gptq else ()  # whose inputs GPTQ will look at
        before = copy.deepcopy(model).requires_grad_(False) if any(m.part in parts for m in matrices) else None
        weighted = [m for m in matrices if by_name[m.name].initialization == "weighted" and m.part not in parts]
        counts = importances(model, [m for m in weighted if is_stock(model, m)], calibrate)
        new = [m for m in matrices if install(model, m, by_name[m.name], inputs, counts.get(m.name))]
        layers = [matrix.name for matrix in new if matrix.part in parts]
        for name in (m.name for m in new if settings.gptq and m.part not in parts and m.name in counts):
            gptq(_source(model, name), Inputs(counts[name].moments, name=name), counts[name].squares)
        if before is not None and layers:
            last: list[Any] = [None, None]  # what was met, and what was made of it, which others may read too

            def take(path: str, hessian: torch.Tensor, crossed: torch.Tensor | None) -> None:
                if last[0] is not hessian:
                    last[:] = [None, None]
                    last[:] = hessian, Inputs(hessian, crossed, path)
                gptq(_source(model, path), last[1])

            in_lockstep(model, before, layers, calibrate, take, "GPTQ", cap=CAP)
        notes: tuple[str, ...] = ()
        if settings.positions and not any(matrix.part == "positions" for matrix in view.matrices):
            notes = (f"no learned positions of {view.model_type} can be quantised: passed over",)
        record(model, unquantized_dtype=settings.unquantized, notes={settings.name: notes} if notes else {})

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The scales ("scale"), what is added before rounding ("rounding"), and the activation clips ("clip")."""
        groups: dict[str, list[nn.Parameter]] = {"scale": [], "rounding": [], "clip": []}
        for module in self.model.modules():
            if isinstance(module, FakeQuantizer):
                groups["scale"] += module.parameters()
            elif isinstance(module, QuantizedWeight) and module.offset is not None:
                groups["rounding"].append(module.offset)
            elif isinstance(module, LearnedActivation):
                groups["clip"] += module.parameters()
        return groups

    def finish(self) -> Compressed:
        """Round what stays unquantised to the type it is stored in, so that the stored model is the trained one."""
        if self.settings.unquantized == "float16":
            round_unquantized(self.model)
        return super().finish()


def settings_of(view: View, method: Quantize) -> dict[str, WeightSettings]:
    """How each matrix is quantised, by its name.

    Raises AbridgedError for an exception that no matrix falls under.
    """
    unused = set(method.exceptions)
    found = {}
    for matrix in view.matrices:
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


def activation(present: nn.Module | None, settings: ActivationSettings, symmetric: bool) -> nn.Module | None:
    """The quantiser for an input: the one that is `present` if the settings are the same, a new one otherwise."""
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
    if not wanted and not any(quantizers_of(model.get_submodule(path)) for path in paths):
        return
    for path in paths:
        module = model.get_submodule(path)
        present = quantizers_of(module)
        if wanted:
            roles = [activation(getattr(present, role, None), settings, role != "probabilities") for role in ROLES]
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
            hooks.append(module.register_forward_pre_hook(lambda m, inputs, to=quantizer: to.observe(inputs[0])))
            observed.append(quantizer)
    if any(quantizer.settings.initial == "calibrated" for quantizer in observed):
        with torch.no_grad():
            calibrate(model)
    for hook in hooks:
        hook.remove()
    for quantizer in observed:
        quantizer.calibrate()


def _source(model: nn.Module, path: str) -> QuantizedWeight:
    layer: Any = model.get_submodule(path)
    return layer.source


def is_stock(model: nn.Module, matrix: Any) -> bool:
    """Whether nothing has quantised the matrix yet."""
    return not hasattr(model.get_submodule(matrix.name), "source")


def install(
    model: nn.Module,
    matrix: Any,
    settings: WeightSettings,
    inputs: dict[str, nn.Module | None],
    counts: Importance | None = None,
) -> bool:
    """Replace the matrix's module, and those tied to it, by quantised ones around one weight, whose errors count so.

    Returns whether it is quantised otherwise than before.
    """
    module = model.get_submodule(matrix.name)
    importance = None if counts is None else counts.squares
    if isinstance(module, (QuantizedLinear, QuantizedEmbedding)):
        source = module.source
        changed = source.install(settings, importance)
    else:
        changed = True
        weight = module.get_parameter("weight").detach()
        weight = weight.t() if matrix.transposed else weight
        source = QuantizedWeight(weight, matrix.fused, settings, matrix.name, importance)
    for path in (matrix.name, *matrix.tied):
        old = model.get_submodule(path)
        new: nn.Module
        if is_embedding(old):
            new = QuantizedEmbedding(source, old)
        else:
            new = QuantizedLinear(source, getattr(old, "bias", None), inputs[path])
        model.set_submodule(path, new.train(old.training))
    return changed


@torch.no_grad()
def round_unquantized(model: nn.Module) -> None:
    """Round every parameter that is not quantised to FP16 values, in the type it has."""
    own = (module for module in model.modules() if isinstance(module, (QuantizedWeight, LearnedActivation)))
    stored = {id(parameter) for module in own for parameter in module.parameters()}  # in a way of their own
    for parameter in model.parameters():
        if id(parameter) not in stored:
            parameter.copy_(parameter.to(torch.float16))

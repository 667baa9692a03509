"""What must hold of a model before a method works on it, tried on a small random model of its class and config.

Each gate makes the same answers in two ways and tells how far they are apart, as the largest difference over the
standard deviation:
- cut: with masks; cut to what they keep; saved and reloaded.
- stored: quantised or factored as a student is; packed; saved and reloaded.
- logits: the model's own, and its head's of its body's last hidden state.
- steps: a text at once, and token by token with a cache.
- prompt: behind tokens of the vocabulary, and behind a prompt of their embeddings; at once, and token by token.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from abridged import families
from abridged.checkpoint.load import load
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.core.errors import AbridgedError
from abridged.families.kinds import is_language_model
from abridged.families.layout import HIDDEN, layout_of
from abridged.families.logits import run_body
from abridged.families.small import small_model
from abridged.families.standin import inputs_of, plain_config
from abridged.methods.kronecker.method import Kronecker
from abridged.methods.prompt_tuning import PromptTuning
from abridged.methods.pruning.cut import cut
from abridged.methods.pruning.masked import Masks, attach, detach
from abridged.methods.pruning.method import Prune
from abridged.methods.quantization.method import Quantize
from abridged.runtime.prompt import attach_prompt

if TYPE_CHECKING:
    from abridged.families import View
    from abridged.methods.base import Method

#: The largest difference, in standard deviations of the answers, that round-off explains.
TOLERANCE = 1e-5
#: Numbers whose standard deviation says nothing of their size.
_FEW = 4
ALL = frozenset({"hidden", "heads", "ffn", "blocks"})
#: What gates quantise and factor with: whatever a recipe asks for is stored and reloaded in the same ways.
_QUANTIZE = {"weights": {"bits": 2}, "embeddings": {"bits": 2}, "activations": {"bits": None}}
#: Faults by model, gate and how it was tried.
_KNOWN: dict[str, str | AbridgedError] = {}


def refuse(kind: type, config: Any, methods: Iterable[Method]) -> None:
    """Raise AbridgedError, in one sentence, for the first method that is not right for models of `kind` and `config`.

    Takes some seconds, once for each model and method of a process.
    """
    for method in methods:
        if isinstance(method, Prune):
            structures = frozenset(method.structures)
            why = _fault(kind, config, cut_gate, structures)
            if why and "blocks" in structures and not _fault(kind, config, cut_gate, structures - {"blocks"}):
                raise AbridgedError(
                    f"whole blocks of models of type {config.model_type} cannot be removed ({why}): leave blocks out "
                    "of methods.prune.structures"
                )
            if why:
                raise AbridgedError(f"models of type {config.model_type} cannot be pruned: {why}; quantise them")
        elif isinstance(method, (Quantize, Kronecker)):
            why = _fault(kind, config, stored_gate, storing(type(method)))
            if why:
                done = "quantised" if isinstance(method, Quantize) else "factored"
                raise AbridgedError(f"models of type {config.model_type} cannot be {done}: {why}")
        elif isinstance(method, PromptTuning) and (why := _fault(kind, config, prompt_gate, ())):
            raise AbridgedError(f"models of type {config.model_type} cannot read a learned prompt: {why}")


def _fault(kind: type, config: Any, gate: Callable[..., float], how: Any) -> str:
    """Why a small model of that kind does not pass a gate; nothing where it does.

    Raises AbridgedError where the gate has said itself what cannot be done.
    """
    settings = json.dumps(plain_config(config).to_dict(), sort_keys=True, default=str)
    key = f"{kind.__name__} {gate.__name__} {how!r} {settings}"
    if key not in _KNOWN:
        try:
            with torch.random.fork_rng():
                model = small_model(kind, config)
                found = gate(model, families.view(model), how)
            _KNOWN[key] = "" if found <= TOLERANCE else f"its answers would change by {found:.1g} standard deviations"
        except AbridgedError as error:
            _KNOWN[key] = error
        except Exception as error:  # a model whose parts do not do what its view says may stumble anywhere
            _KNOWN[key] = f"{type(error).__name__}: {error}".splitlines()[0]
    found_before = _KNOWN[key]
    if isinstance(found_before, AbridgedError):
        raise found_before
    return found_before


def storing(method: type[Method]) -> Method:
    """What the gates put into a model."""
    return Quantize.model_validate(_QUANTIZE) if method is Quantize else Kronecker()


@torch.no_grad()
def answers(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All that a model puts out about its inputs: logits, scores, hidden states, in FP32."""
    model.eval()
    return [
        value.float() for value in model(**inputs).values() if isinstance(value, Tensor) and value.is_floating_point()
    ]


def difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference over the standard deviation of what is wanted; infinite for other shapes.

    Of a few numbers, such as two logits that may be nearly equal, over their root mean square.
    """
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return float("inf")
    spread = [float(y.std(correction=0) if y.numel() > _FEW else y.norm() / y.numel() ** 0.5) or 1.0 for y in wanted]
    return max(float((x - y).abs().max()) / size for x, y, size in zip(found, wanted, spread, strict=True))


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers' progress bars are for what a person waits for."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def reloaded(model: Any) -> Any:
    """A packed or trained model, as it comes back from a file."""
    with tempfile.TemporaryDirectory() as directory, _without_bars():
        save_checkpoint(model, Path(directory) / "model", None, {})
        return load(Path(directory) / "model")


def cut_gate(model: Any, view: View, structures: frozenset[str] = ALL) -> float:
    """How far a model with masks over some of its units, the model cut to the others, and a reloaded one are apart.

    Raises AbridgedError where the model cannot be pruned.
    """
    inputs, worst = inputs_of(model), 0.0
    for removing in (False, True) if "blocks" in structures else (False,):
        trial = copy.deepcopy(model)
        layout = layout_of(trial, view)
        masks = attach(trial, layout, "vib", structures)
        kept = _chosen(masks, structures, removing)
        wanted, free = answers(trial, inputs), masks.free > 0
        factors = torch.where(free, masks.mask.factors(), torch.ones(len(free)))
        detach(trial, masks)
        by_axis = {name: factors[place] for name, place in masks.places.items()}
        cut(trial, layout, kept, by_axis, {name: factors[place] for name, place in masks.gates.items()})
        for one in (trial, reloaded(trial)):
            found = answers(one, inputs)
            worst = max(
                worst, difference(found, [_left(x, y, kept[HIDDEN]) for x, y in zip(wanted, found, strict=True)])
            )
    return worst


def _left(x: Tensor, cut_x: Tensor, kept: Tensor) -> Tensor:
    """Of the hidden states (…, d) that a model without a head puts out, the units that the cut one has."""
    return x[..., kept] if x.shape != cut_x.shape and cut_x.shape[-1] == len(kept) else x


def _chosen(masks: Masks, structures: frozenset[str], removing: bool) -> dict[str, Tensor]:
    """Set the masks: two thirds or so of the units that may go stay; `removing` the first part of each kind."""
    draw, layout = torch.Generator().manual_seed(2), masks.layout
    keep = torch.rand(masks.mask.units, generator=draw) < 2 / 3
    gone = {axis.kind: name for name, axis in reversed(layout.axes.items()) if axis.gated} if removing else {}
    for name, place in masks.places.items():
        keep[place.stop - 1], keep[place.start] = False, True  # some of every axis go, some stay
        if name in masks.gates:
            keep[masks.gates[name]] = name not in gone.values()
    keep |= masks.free == 0
    mask: Any = masks.mask
    with torch.no_grad():
        mask.mu.copy_(0.5 + torch.rand(masks.mask.units, generator=draw))
        mask.log_alpha.copy_(torch.where(keep, -5.0, 5.0))
    none = torch.zeros(0, dtype=torch.int64)
    return {
        name: keep[place].nonzero().flatten() if name not in gone.values() else none
        for name, place in masks.places.items()
    }


def stored_gate(model: Any, view: View, method: Method) -> float:
    """How far a student, the packed student, and the reloaded one are apart."""
    inputs = inputs_of(model)
    student = copy.deepcopy(model)
    method.build(student, view, lambda model, tokens=None: model(**inputs)).finish()
    wanted = answers(student, inputs)
    packed = pack_model(student)
    return max(difference(answers(one, inputs), wanted) for one in (packed, reloaded(packed)))


@torch.no_grad()
def logits_gate(model: Any, view: View) -> float:
    """How far the logits that an objective makes of the body's last hidden state are from the model's own."""
    if view.logits is None:
        raise AbridgedError(f"a {type(model).__name__} has no head for tokens")
    inputs, how = inputs_of(model), view.logits
    head = model.get_output_embeddings()
    found = head(how.input_scale * run_body(model, inputs, return_dict=True).last_hidden_state)
    if getattr(model, "final_logits_bias", None) is not None:
        found = found + model.final_logits_bias
    found = found * how.scale if how.cap is None else how.cap * torch.tanh(found * how.scale / how.cap)
    return difference([found], [model(**inputs).logits])


@torch.no_grad()
def steps_gate(model: Any) -> float:
    """How far the logits of a decoder that reads token by token are from those of the text read at once."""
    ids = inputs_of(model)["input_ids"]
    return _token_by_token(model, ids, model(ids).logits)


def _token_by_token(model: Any, ids: Tensor, wanted: Tensor) -> float:
    cache, found = None, []
    for i in range(ids.shape[1]):
        step = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        found.append(step.logits)
    return difference([torch.cat(found, 1)], [wanted])


@torch.no_grad()
def prompt_gate(model: Any, view: View | None = None, how: Any = ()) -> float:
    """How far the logits of a text behind a prompt of two tokens' embeddings are from those behind the two tokens.

    Raises AbridgedError where the model does not go on with a text.
    """
    if not is_language_model(model):
        raise AbridgedError(
            f"a learned prompt stands before a text to go on with, which a {type(model).__name__} does not"
        )
    ids = inputs_of(model)["input_ids"]
    wanted, (before, text) = model(ids).logits[:, 2:], ids.split([2, ids.shape[1] - 2], 1)
    attach_prompt(model, model.get_input_embeddings()(before)[0].clone())
    return max(difference([model(text).logits], [wanted]), _token_by_token(model, text, wanted))

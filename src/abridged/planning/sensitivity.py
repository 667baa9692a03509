"""What each matrix of a model costs in each form: how far the model's answers move when it alone is stored so.

Costs are in nats a token: the divergence KL(p‖q) of the changed model's answers q from the model's own p. Those of
several matrices are taken to add up, which the linearity theorem of HIGGS (Malinovskii et al., arXiv:2411.17525,
section 3) gives for small errors. There are three ways to know them, from dear to cheap:

- measured: every form of every matrix is put in and the text read again.
- interpolated: a few forms of each matrix are measured, from fine to coarse; the others follow by their squared errors,
  as HIGGS has it (equation 3) but for the power, which is what lies between those that are measured. What factors leave
  out of a matrix moves the answers otherwise than as much rounding error does, and is measured too.
- fisher: nothing is measured. One backward pass for answers drawn from the model itself gives the curvature of the
  divergence, which is the Fisher matrix (Martens, arXiv:1412.1193, section 5): a token with input x and gradient g at a
  matrix costs ½s² for s = g·ΔW x (as HAWQ does with a Hessian's trace, arXiv:1911.03852, and without its averaging).
  A divergence grows no faster than the logits move, so that beyond a nat s counts as it is: √(1 + s²) - 1. Without
  that a few tokens with huge activations decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.core.errors import AbridgedError
from abridged.core.modes import evaluating
from abridged.core.progress import counter
from abridged.data.batch import Batch
from abridged.methods.kronecker.decomposition import nearest
from abridged.methods.quantization.importance import importances
from abridged.methods.quantization.modules import QuantizedWeight
from abridged.planning.forms import Assignment, Form
from abridged.runtime.kronecker import layout, multiply_out
from abridged.storage.view import Matrix

Way = Literal["measured", "interpolated", "fisher"]
Forms = Mapping[str, Sequence[Form]]  #: of each matrix, by its name
Costs = dict[str, list[float]]  #: nats a token of each of a matrix's forms, by its name

ANCHORS = (0.3, 0.55, 0.8)  #: which forms of a matrix are measured, as shares of all, by their squared errors
_LEAST = 1e-12  #: of an error or a cost, so that it has a logarithm
_MOST = 1e3  #: nats a token, of a model whose answers are no numbers any more
_SEED = 0  #: of the answers that are drawn


class Text:
    """Some batches of data, and what a model answers to them."""

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        """Raises AbridgedError for a model that does not answer with logits, or whose answers are no numbers."""
        self.model, self.batches = model, [batch.to(next(model.parameters()).device) for batch in batches]
        self.counts: dict[str, Tensor] = {}  # how much errors of a matrix count where its scales start, by its name
        self._answers = [F.log_softmax(self._logits(batch), -1) for batch in self.batches]
        self.tokens = sum(len(answers) for answers in self._answers)
        if not all(bool(torch.isfinite(answers).all()) for answers in self._answers):
            raise AbridgedError("what the model answers are not numbers (NaN or infinity)")

    @torch.no_grad()
    def read(self, model: Any, tokens: int | None = None) -> None:
        """Let a model read all of it."""
        for batch in self.batches:
            model(**batch.model_inputs, use_cache=False)

    @torch.no_grad()
    def _logits(self, batch: Batch) -> Tensor:
        with evaluating(self.model):
            return logits_of(self.model, batch)

    @torch.no_grad()
    def divergence(self, model: Any = None) -> float:
        """KL of the answers of a model (this one, as it is now) from those that this one gave, in nats a token."""
        model, total = model or self.model, 0.0
        with evaluating(model):
            for batch, own in zip(self.batches, self._answers, strict=True):
                total += float(
                    F.kl_div(F.log_softmax(logits_of(model, batch), -1), own, log_target=True, reduction="sum")
                )
        return min(max(total / self.tokens, 0.0), _MOST) if math.isfinite(total) else _MOST


def logits_of(model: Any, batch: Batch) -> Tensor:
    """What a model answers to all that counts in a batch: (tokens or examples, classes) FP32."""
    logits = getattr(model(**batch.model_inputs, use_cache=False), "logits", None)
    if logits is None:
        raise AbridgedError(f"a plan compares logits, and a {type(model).__name__} answers without any")
    counted = batch.counted
    return (logits[counted] if logits.shape[:-1] == counted.shape else logits.flatten(0, -2)).float()


class Stored:
    """A weight as forms store it before any training, as the module has it, transposed or not."""

    def __init__(self, weight: Tensor, matrix: Matrix, counts: Tensor | None = None) -> None:
        """counts: see `Importance.squares`."""
        self.matrix, self.counts = matrix, counts
        self.weight = weight.t() if matrix.transposed else weight
        self._pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}  # of each block of rows, by factor

    @torch.no_grad()
    def __call__(self, form: Form) -> Tensor:
        """The values of a form."""
        own, name = form.weights, self.matrix.name
        if form.whole:
            return self._turned(QuantizedWeight(self.weight, self.matrix.fused, own, name, self.counts)())
        return self._product(form, lambda weight: QuantizedWeight(weight, 1, own, name)())

    @torch.no_grad()
    def in_full(self, form: Form) -> Tensor:
        """What a form with factors would be, were they in full precision."""
        return self._product(form, lambda weight: weight)

    def _product(self, form: Form, values: Callable[[Tensor], Tensor]) -> Tensor:
        shapes = form.factors_of(self.matrix)
        if form.factor not in self._pairs:
            blocks = self.weight.chunk(shapes.fused)
            self._pairs[form.factor] = [layout(shapes, *nearest(block, shapes)[:2]) for block in blocks]
        pairs = self._pairs[form.factor]
        return self._turned(torch.cat([multiply_out(shapes, values(left), values(right)) for left, right in pairs]))

    def _turned(self, found: Tensor) -> Tensor:
        return found.t() if self.matrix.transposed else found


@contextmanager
def weight_of(model: nn.Module, matrix: Matrix) -> Iterator[Tensor]:
    """The weight that a matrix's module has, which may be changed in place; afterwards it is what it was."""
    parameter = model.get_submodule(matrix.name).get_parameter("weight")
    before = parameter.detach().clone()
    try:
        yield parameter.detach()
    finally:
        parameter.detach().copy_(before)


@contextmanager
def stored_so(model: nn.Module, matrices: Sequence[Matrix], assignment: Assignment) -> Iterator[None]:
    """A model whose matrices are stored in the forms that they are given; afterwards it is what it was."""
    with ExitStack() as stack:
        for matrix in matrices:
            weight = stack.enter_context(weight_of(model, matrix))
            weight.copy_(Stored(weight.clone(), matrix)(assignment[matrix.name]))
        yield


def find_costs(text: Text, matrices: Sequence[Matrix], forms: Forms, way: Way) -> Costs:
    """What each form of each matrix costs, in one of the three ways."""
    with evaluating(text.model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        weighted = [m for m in matrices if any(f.weights.initialization == "weighted" for f in forms[m.name])]
        found = importances(text.model, weighted, text.read) if weighted else {}
        text.counts = {name: importance.squares for name, importance in found.items()}
        return WAYS[way](text, matrices, forms)


def measured(text: Text, matrices: Sequence[Matrix], forms: Forms) -> Costs:
    """The divergence with each form of each matrix; one pass over the text for each."""
    costs: Costs = {}
    done, of = 0, sum(len(_distinct(forms[matrix.name])) for matrix in matrices)
    with counter("sensitivity") as show:
        for matrix in matrices:
            with weight_of(text.model, matrix) as weight:
                stored, found = Stored(weight.clone(), matrix, text.counts.get(matrix.name)), {}
                for form in _distinct(forms[matrix.name]):
                    weight.copy_(stored(form))
                    found[form] = text.divergence()
                    done += 1
                    show(done, of)
            costs[matrix.name] = [found[form.values] for form in forms[matrix.name]]
    return costs


def interpolated(text: Text, matrices: Sequence[Matrix], forms: Forms) -> Costs:
    """The divergence with a few whole forms of each matrix; of the others what a power of the squared error between
    these says. One with factors costs what these do in full precision, which is measured, and what the error beside
    that does.
    """
    costs: Costs = {}
    with counter("sensitivity") as show:
        for number, matrix in enumerate(matrices, 1):
            with weight_of(text.model, matrix) as weight:
                original, distinct = weight.clone(), _distinct(forms[matrix.name])
                stored = Stored(original, matrix, text.counts.get(matrix.name))
                factored = {form.factor: stored.in_full(form) for form in distinct if not form.whole}
                errors = {
                    form: float((stored(form) - factored.get(form.factor, original)).square().sum())
                    for form in distinct
                }
                order, known = sorted((f for f in distinct if f.whole), key=lambda form: errors[form]), {}
                for form in {order[int(len(order) * share)] for share in ANCHORS}:
                    weight.copy_(stored(form))
                    known[errors[form]] = text.divergence()
                lost = {1: 0.0}
                for factor, values in factored.items():
                    weight.copy_(values)
                    lost[factor] = text.divergence()
            found = {form: lost[form.factor] + between(known, errors[form]) for form in distinct}
            costs[matrix.name] = [found[form.values] for form in forms[matrix.name]]
            show(number, len(matrices))
    return costs


def between(known: Mapping[float, float], error: float) -> float:
    """What an error costs, where a few are known: a power of it between two that are, in proportion to it beyond."""
    logs = sorted((math.log(max(e, _LEAST)), math.log(max(cost, _LEAST))) for e, cost in known.items())
    x, (first, last) = math.log(max(error, _LEAST)), (logs[0], logs[-1])
    nearest = first if x <= first[0] else last
    if x <= first[0] or x >= last[0]:
        return math.exp(nearest[1] + x - nearest[0])
    errors, costs = zip(*logs, strict=True)
    return math.exp(float(np.interp(x, errors, costs)))


def fisher(text: Text, matrices: Sequence[Matrix], forms: Forms) -> Costs:
    """Σ √(1 + (g·ΔW x)²) - 1 over the tokens of every module that reads the matrix."""
    traces = trace(text, [path for matrix in matrices for path in (matrix.name, *matrix.tied)])
    costs: Costs = {}
    with counter("sensitivity") as show, torch.no_grad():
        for number, matrix in enumerate(matrices, 1):
            weight = text.model.get_submodule(matrix.name).get_parameter("weight").detach()
            stored, found = Stored(weight, matrix, text.counts.get(matrix.name)), {}
            for form in _distinct(forms[matrix.name]):
                change = stored(form) - weight
                change = change.t() if matrix.transposed else change
                read = (moved for path in (matrix.name, *matrix.tied) for moved in traces[path])
                found[form] = sum(_moved(change, x, g) for x, g in read) / text.tokens
            costs[matrix.name] = [found[form.values] for form in forms[matrix.name]]
            show(number, len(matrices))
    return costs


def _moved(change: Tensor, x: Tensor, g: Tensor) -> float:
    """Σ √(1 + (g·ΔW x)²) - 1, in nats, for a change (rows, columns), inputs x (n, columns) or ids (n,), and gradients g
    (n, rows), of ids (n, columns)."""
    outputs = x @ change.t() if x.is_floating_point() else F.embedding(x, change)
    return float(((outputs * g).sum(-1).square() + 1).sqrt().sub(1).sum())


def trace(text: Text, paths: Sequence[str]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What goes into each module, (n, columns) or ids (n,), and the gradient of what comes out, (n, rows), batch by
    batch; of -log p of answers that are drawn from the model's own, summed over the tokens."""
    traces: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}

    def follow(path: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            x = inputs[0].detach()
            x = x.flatten(0, -2) if x.is_floating_point() else x.flatten()
            if not output.requires_grad:  # the first of all: no weight asks for a gradient
                output = output.detach().requires_grad_()
            output.register_hook(lambda g: traces[path].append((x, g.detach().flatten(0, -2))))
            return output

        return hook

    hooks = [text.model.get_submodule(path).register_forward_hook(follow(path)) for path in paths]
    wanted = [p for p in text.model.parameters() if p.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        for batch in text.batches:
            with torch.enable_grad():
                logits = logits_of(text.model, batch)
                drawn = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
                F.cross_entropy(logits, drawn, reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in wanted:
            parameter.requires_grad_()
    return traces


WAYS: dict[Way, Callable[[Text, Sequence[Matrix], Forms], Costs]] = {
    "measured": measured,
    "interpolated": interpolated,
    "fisher": fisher,
}


def _distinct(forms: Sequence[Form]) -> list[Form]:
    """One form of each set of values."""
    return list(dict.fromkeys(form.values for form in forms))

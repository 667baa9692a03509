"""One pass of a stand-in, watched; and what of it depends on what, by gradients.

Three things tell what a model is made of, whatever its parts are called:
- the order in which its linear layers, embeddings and norms are called;
- the calls of transformers' attention interface, where an implementation of our own is handed module, query and key;
- which rows of the layers before a matrix the gradient of one of its columns reaches. Units are what reaches nothing
  of each other: that finds them, and is at once the check that removing one leaves the others as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.pytorch_utils import Conv1D

from abridged.storage.view import Run

_IMPLEMENTATION = "abridged_probe"
#: Gradients below this share of the largest are round-off.
_NOTHING = 1e-6
_watching: list[Any] = []


@dataclass
class Event:
    """A call: of an attention, `inputs` is the query (B, heads, T, d) and `output` the key (B, groups, T, d)."""

    kind: str  #: linear, embedding, norm or attention
    path: str
    module: Any
    inputs: Any
    output: Any


@dataclass
class Pass:
    """A pass of a stand-in, in order.

    Attributes:
        events: the first call of every module.
        streams: by block, the stream (B, T, d) that it reads.
        calls_base: whether the model's base model was called.
    """

    events: list[Event]
    streams: dict[str, Tensor]
    calls_base: bool

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """transformers' eager attention of the module's own file, after whoever watches was told."""
    for tell in _watching:
        tell(module, query, key)
    return sys.modules[type(module).__module__].eager_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(_IMPLEMENTATION, _attend)
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


def watch(model: Any, inputs: dict[str, Tensor], blocks: list[str]) -> Pass:
    """A pass of `model` over `inputs`, with gradients; whatever the pass raises is raised."""
    try:
        model.set_attn_implementation(_IMPLEMENTATION)
    except Exception:  # models older than the interface have attentions of their own
        model.set_attn_implementation("eager")
    paths = {module: path for path, module in model.named_modules()}
    events: dict[tuple[str, str], Event] = {}
    streams: dict[str, Tensor] = {}
    called: list[bool] = []

    def note(kind: str, module: Any, first: Any, output: Any) -> None:
        if module in paths:
            events.setdefault((kind, paths[module]), Event(kind, paths[module], module, first, output))

    def hook(kind: str) -> Any:
        return lambda module, given, output: note(kind, module, given[0] if given else None, output)

    def read(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        streams.setdefault(paths[module], given[0] if given else named["hidden_states"])

    with ExitStack() as stack:
        for module in paths:
            if (kind := _kind(module)) is not None:
                stack.enter_context(module.register_forward_hook(hook(kind)))
        for block in blocks:
            stack.enter_context(model.get_submodule(block).register_forward_pre_hook(read, with_kwargs=True))
        stack.enter_context(model.base_model.register_forward_pre_hook(lambda *_: called.append(True)))
        stack.enter_context(_smooth())
        stack.enter_context(_told(lambda module, query, key: note("attention", module, query, key)))
        stack.enter_context(torch.enable_grad())
        model(**inputs)
    return Pass(list(events.values()), streams, bool(called))


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.Linear, Conv1D)):
        return "linear"
    weight = module._parameters.get("weight")
    return "norm" if weight is not None and weight.ndim == 1 and next(module.children(), None) is None else None


@contextmanager
def _told(tell: Any) -> Iterator[None]:
    _watching.append(tell)
    try:
        yield
    finally:
        _watching.remove(tell)


@contextmanager
def _smooth() -> Iterator[None]:
    """ReLU is GELU for now: where it is flat, a unit would seem to depend on nothing."""
    gelu = nn.functional.gelu
    with (
        mock.patch.object(nn.ReLU, "forward", lambda self, x: gelu(x)),
        mock.patch.object(nn.functional, "relu", lambda x, inplace=False: gelu(x)),
    ):
        yield


class Dependence:
    """Which rows of the layers before a matrix reach which of its columns."""

    def __init__(self, output: Event, before: list[Event]) -> None:
        self.x, self.before = output.inputs, before
        self.draw = torch.Generator().manual_seed(1)

    def rows(self, columns: Tensor) -> dict[str, Tensor]:
        """By path: rows (bool) that some of the columns (int64) depend on; layers that none depends on are left out."""
        cotangent = torch.zeros_like(self.x)
        cotangent[..., columns] = torch.randn(cotangent[..., columns].shape, generator=self.draw)
        outputs = [event.output for event in self.before]
        gradients = torch.autograd.grad(self.x, outputs, cotangent, retain_graph=True, allow_unused=True)
        found = {}
        for event, gradient in zip(self.before, gradients, strict=True):
            if gradient is not None:
                reached = gradient.flatten(0, -2).abs().amax(0)
                if float(reached.max()) > 0:
                    found[event.path] = reached > _NOTHING * reached.max()
        return found

    def mixes_tokens(self) -> bool:
        """Whether what stands at the last token depends on layers at the first one."""
        if self.x.ndim != 3 or self.x.shape[1] < 2:
            return False
        cotangent = torch.zeros_like(self.x)
        cotangent[:, -1] = torch.randn(cotangent[:, -1].shape, generator=self.draw)
        outputs = [event.output for event in self.before if event.output.ndim == 3]
        gradients = torch.autograd.grad(self.x, outputs, cotangent, retain_graph=True, allow_unused=True)
        return any(g is not None and bool(g[:, 0].any()) for g in gradients)

    def reaches(self, events: list[Event]) -> list[str]:
        """Paths of further events that any column depends on."""
        outputs = [event.output for event in events]
        if not outputs:
            return []
        found = torch.autograd.grad(self.x.sum(), outputs, retain_graph=True, allow_unused=True)
        return [event.path for event, gradient in zip(events, found, strict=True) if gradient is not None]


def passes_by(source: Event, part: Event, after: Event) -> bool:
    """Whether what `after` reads depends on `source` along a way that does not go through the output of `part`."""
    wanted, closed = source.output.grad_fn, part.output.grad_fn
    ahead, seen = [after.inputs.grad_fn], {closed, None}
    while ahead:
        node = ahead.pop()
        if node is wanted:
            return True
        if node not in seen:
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return False


@dataclass
class Units:
    """The units of a part: by path of the layers before its output, which rows are whose.

    Attributes:
        shared: layers of which all units depend on the same rows (a norm over all heads, a table of biases).
        fault: why the units cannot be removed, if they cannot.
    """

    runs: dict[str, tuple[Run, ...]] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    fault: str = ""

    @property
    def reason(self) -> str:
        """One phrase, empty where units can be removed."""
        if self.fault or not self.shared:
            return self.fault
        return f"all of its units depend on the same rows of {self.shared[0]}"


def attention_units(dependence: Dependence, units: int) -> Units:
    """The groups of heads of an attention, each of neighbouring columns of its output matrix."""
    columns = dependence.x.shape[-1]
    if columns % units:
        return Units(fault=f"{units} heads do not divide {columns} columns")
    each, found = columns // units, Units()
    by_unit = [dependence.rows(torch.arange(u * each, (u + 1) * each)) for u in range(units)]
    for path, like in {path: rows for one in by_unit for path, rows in one.items()}.items():
        rows = [one.get(path, torch.zeros_like(like)) for one in by_unit]
        if units > 1 and all(torch.equal(own, like) for own in rows):
            found.shared.append(path)
        elif int(torch.stack(rows).sum(0).max()) > 1:
            found.fault = f"its heads share some of the rows of {path}"
        elif (runs := runs_of(rows)) is None:
            found.fault = f"the rows of {path} are in no order of heads"
        else:
            found.runs[path] = runs
    return found


def inner_units(dependence: Dependence) -> Units:
    """The units of a feed-forward part, one column of its output matrix each.

    The first two tell the runs, the last one and a random half of all check them.
    """
    units, found = dependence.x.shape[-1], Units()
    half = (torch.rand(units, generator=dependence.draw) < 0.5).nonzero().flatten()
    first, second, last, many = (
        dependence.rows(columns) for columns in (torch.tensor([0]), torch.tensor([1]), torch.tensor([units - 1]), half)
    )
    last_unit = torch.tensor([units - 1])
    for path, rows in first.items():
        if path not in second or path not in last:
            found.fault = f"not every unit reads {path}"
            continue
        if torch.equal(rows, second[path]) and int(rows.sum()) > 2:
            found.shared.append(path)
            continue
        runs = runs_of([rows, second[path]])
        if runs is None or not torch.equal(_rows_of(runs, last_unit, rows), last[path]):
            found.fault = f"the rows of {path} are in no order of units"
        elif bool((many[path] & ~_rows_of(runs, half, rows)).any()):
            found.fault = f"its units share some of the rows of {path}"
        else:
            found.runs[path] = runs
    return found


def runs_of(rows: list[Tensor]) -> tuple[Run, ...] | None:
    """Rows (bool) by unit as runs that hold for the first two and the last of them; None where no runs do."""
    begins = [_neighbours(one) for one in rows[:2]]
    if any([size for _, size in one] != [size for _, size in begins[0]] for one in begins):
        return None
    second = begins[1] if len(begins) > 1 else [(begin + size, size) for begin, size in begins[0]]
    if any(after < begin for (begin, _), (after, _) in zip(begins[0], second, strict=True)):
        return None
    runs = tuple(Run(begin, after - begin, size) for (begin, size), (after, _) in zip(begins[0], second, strict=True))
    for unit in {0, len(rows) - 1}:
        if not torch.equal(_rows_of(runs, torch.tensor([unit]), rows[unit]), rows[unit]):
            return None
    return runs


def _neighbours(rows: Tensor) -> list[tuple[int, int]]:
    """(first, how many) of each run of neighbours in a set of rows."""
    index = rows.nonzero().flatten().tolist()
    if not index:
        return []
    cuts = [0, *(i for i in range(1, len(index)) if index[i] != index[i - 1] + 1), len(index)]
    return [(index[a], b - a) for a, b in zip(cuts, cuts[1:], strict=False)]


def _rows_of(runs: tuple[Run, ...], units: Tensor, like: Tensor) -> Tensor:
    """The rows (bool, as many as `like` has) that belong to units."""
    found = torch.zeros_like(like)
    for run in runs:
        index = (run.offset + units.unsqueeze(1) * run.stride + torch.arange(run.size)).flatten()
        found[index[index < len(found)]] = True
    return found

"""What a plan takes on this machine: seconds a token and bytes in memory, from kernels that are measured.

1. One plan is packed as a student is, and writes; the original writes beside it. Both are measured as `abridged bench`
   measures them.
2. Every form of every matrix goes through the kernel that serves it, alone, for one token. Copies of it are read in
   turn, as many as there is room for in a model of the size that is asked for, so that no cache holds what it would not
   hold there. What was measured is kept in the cache, by processor, threads and versions.
3. Seconds of a token in another plan are those of 1, and by how much its matrices take longer or shorter by 2. Bytes
   likewise.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abridged import families
from abridged.checkpoint.pack import pack_model
from abridged.checkpoint.save import save_checkpoint
from abridged.checkpoint.skeleton import build_module
from abridged.core.atomic import write_atomically
from abridged.core.cache import cache_folder
from abridged.core.errors import AbridgedError
from abridged.core.hardware import describe
from abridged.core.progress import counter
from abridged.evaluation.speed import decode_seconds, memory
from abridged.families.kinds import context_of, is_encoder_decoder
from abridged.planning.forms import Assignment, Form, assigned
from abridged.planning.sizes import Sizes
from abridged.recipe import Recipe
from abridged.runtime.decoding.parts import embedding, linear
from abridged.runtime.kernels import kernels
from abridged.runtime.modules import PackedModule
from abridged.storage.format import LinearSpec, ModuleSpec
from abridged.training.dry import without_data

Specs = Mapping[str, ModuleSpec]  #: how the modules of one matrix are stored, by path

_WORKING_SET = 1 << 27  #: bytes that are read between two uses of a matrix, at most
_COPIES = 64  #: of a matrix, at most
_SECONDS, _PASSES = 0.01, 5  #: that are measured of each form, at least
_PROMPT, _NEW, _ROUNDS = 512, 64, 3  #: tokens that are read and written, as `abridged bench` does; the fastest counts
_KEEP_EVERY = 20  #: forms, so that what was measured before an interruption is kept


@dataclass(frozen=True)
class Machine:
    """What each form of each matrix takes, and what all else does.

    Attributes:
        seconds, bytes: of each form of each matrix, for one token and in memory.
        rest_seconds, rest_bytes: of a token and in memory, beside the matrices; None of what was not measured.
        dense_seconds: of a token in the original in FP32.
    """

    seconds: Mapping[str, Mapping[Form, float]]
    bytes: Mapping[str, Mapping[Form, int]]
    rest_seconds: float | None = None
    rest_bytes: int | None = None
    dense_seconds: float | None = None

    def tokens_per_second(self, assignment: Assignment) -> float | None:
        """That a plan writes, one after the other."""
        if self.rest_seconds is None:
            return None
        return 1 / (self.rest_seconds + sum(self.seconds[name][form] for name, form in assignment.items()))

    def memory(self, assignment: Assignment) -> int | None:
        """Bytes that a plan holds once it has read a text."""
        if self.rest_bytes is None:
            return None
        return self.rest_bytes + sum(self.bytes[name][form] for name, form in assignment.items())


def measure(
    dense: Any,
    recipe: Recipe,
    sizes: Sizes,
    forms: Mapping[str, Sequence[Form]],
    of: Assignment,
    *,
    speed: bool,
    small: Any = None,
) -> Machine:
    """Measure this machine by a plan, `of`, and by every form.

    Args:
        dense: the original.
        speed: whether seconds are measured too, and not memory alone.
        small: what is planned for, where that is not the original itself.

    Raises:
        AbridgedError: speed is asked of a model that writes nothing.
    """
    if speed and not dense.can_generate():
        raise AbridgedError(f"--speed is for models that write, and a {type(dense).__name__} does not")
    specs = {(name, form): sizes.modules(name, form) for name, own in forms.items() for form in own}
    held = {key: _bytes(own) for key, own in specs.items()}
    packed = pack_model(built(dense if small is None else small, recipe, of))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(packed, Path(folder) / "plan", None, {"recipe": {"name": recipe.name}})
        rest = memory(Path(folder) / "plan")["in_use_bytes"] - sum(held[one] for one in of.items())
    bytes_ = {name: {form: held[name, form] for form in own} for name, own in forms.items()}
    if not speed:
        return Machine({name: dict.fromkeys(own, 0.0) for name, own in forms.items()}, bytes_, rest_bytes=rest)
    taken = _kernel_seconds(list(specs.values()), sizes.file_bytes(of))
    seconds = {name: {form: taken[_key(specs[name, form])] for form in own} for name, own in forms.items()}
    writing = {"packed": _writing(packed), "dense": _writing(dense)}
    beside = writing["packed"] - sum(seconds[name][form] for name, form in of.items())
    return Machine(seconds, bytes_, max(0.0, beside), rest, writing["dense"])


def built(dense: Any, recipe: Recipe, assignment: Assignment) -> Any:
    """A student as a plan starts it, without training; the original stays as it is."""
    student = copy.deepcopy(dense)
    for stage in assigned(recipe, assignment).stages:
        for method in stage.methods.values():
            without_data(method).build(student, families.view(student), lambda model, tokens=None: None).finish()
    return student


def _writing(model: Any) -> float:
    """Seconds of a token, as `abridged bench` has it."""
    limit = context_of(model.config)
    new = min(_NEW, limit // 2)
    length = _PROMPT if is_encoder_decoder(model) else max(1, min(_PROMPT, limit - new - 1))
    tokens = model.config.get_text_config().vocab_size
    ids = torch.randint(tokens, (1, length), generator=torch.Generator().manual_seed(0))
    return min(decode_seconds(model, ids, new) for _ in range(_ROUNDS))


def _kernel_seconds(all_specs: Sequence[Specs], working_set: int) -> dict[str, float]:
    """Seconds of one token through each of them, by `_key`; what is known of this machine is not measured again."""
    working_set = 1 << max(0, min(working_set, _WORKING_SET).bit_length() - 1)
    here = hashlib.sha256(json.dumps(_machine(working_set)).encode()).hexdigest()[:24]
    kept = cache_folder("kernels") / f"{here}.json"
    known = _read(kept)
    wanted = {key: specs for specs in all_specs if (key := _key(specs)) not in known}
    with counter("kernels") as show:
        for number, (key, specs) in enumerate(wanted.items(), 1):
            known[key] = sum(_seconds(specs, path, working_set) for path in _roots(specs))
            show(number, len(wanted))
            if number % _KEEP_EVERY == 0 or number == len(wanted):
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, json.dumps(known))
    return known


def _machine(working_set: int) -> list[Any]:
    """What a kernel's time depends on beside its matrix."""
    from abridged import __version__

    compiled = kernels()
    about = describe()
    path = "reference" if compiled is None else compiled.path
    return [about["cpu"], about["cores"], about["threads"], path, __version__, torch.__version__, working_set]


def _read(file: Path) -> dict[str, float]:
    """What was kept; nothing where that is not there or not whole."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _key(specs: Specs) -> str:
    """Alike for matrices of one shape that are stored alike, wherever they are in a model."""
    roots = _roots(specs)
    told = [
        [path.removeprefix(root), spec.model_dump(exclude_none=True, exclude={"tied", "error"})]
        for root in roots
        for path, spec in specs.items()
        if f"{path}.".startswith(f"{root}.")
    ]
    return json.dumps(told, sort_keys=True)


def _roots(specs: Specs) -> list[str]:
    """The paths that are not within another."""
    return [path for path in specs if not any(path.startswith(f"{other}.") for other in specs)]


def _module(specs: Specs, root: str) -> nn.Module:
    """An empty module, its packed factors within it."""
    module = build_module(specs[root])
    for path, spec in specs.items():
        if path.startswith(f"{root}."):
            module.set_submodule(path[len(root) + 1 :], build_module(spec))
    return module.eval()


def _bytes(specs: Specs) -> int:
    """That the modules hold of their own, with what the kernels make of zero points (`Held`)."""
    own = [path for path in _roots(specs) if getattr(specs[path], "tied", None) is None]
    with torch.device("meta"):
        modules = [_module(specs, path) for path in own]
    numbers = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    packed = [one for module in modules for one in module.modules() if isinstance(one, PackedModule)]
    return numbers + sum(one.spec.num_scales for one in packed if one.zeros is not None)


def _seconds(specs: Specs, root: str, working_set: int) -> float:
    """Of one token through a module, the fastest of some passes over its copies."""
    modules = [_filled(_module(specs, root))]
    own = sum(parameter.nbytes for parameter in modules[0].parameters())
    copies = max(1, min(_COPIES, math.ceil(working_set / own)))
    modules += [_filled(_module(specs, root)) for _ in range(copies - 1)]
    calls, x = zip(*(_call(module, specs[root]) for module in modules), strict=True)
    best, passes, began = math.inf, 0, time.perf_counter()
    with torch.inference_mode():
        while passes < _PASSES or time.perf_counter() - began < _SECONDS:
            started = time.perf_counter()
            for call, given in zip(calls, x, strict=True):
                call(given)
            best, passes = min(best, time.perf_counter() - started), passes + 1
    return best / copies


def _call(module: Any, spec: ModuleSpec) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A module as a step of one token calls it, and what it is given."""
    if isinstance(spec, LinearSpec) or getattr(spec, "reads", None) == "linear":
        return linear(module, torch.float32), torch.ones(1, module.columns)
    return embedding(module), torch.zeros(1, dtype=torch.int64)


def _filled(module: nn.Module) -> nn.Module:
    """With codes that are in every code book, and scales that are numbers."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(0.01) if tensor.is_floating_point() else tensor.zero_()
    return module

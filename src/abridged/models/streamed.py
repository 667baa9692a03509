"""A dense model's weights as they lie on disk: a model is made without any, and is given those of a part in its time.

Instead of `from_pretrained`, which holds all weights at once. Files are memory-mapped, so that what is read is what was
asked for; a part is turned into FP32 when it is taken, whatever the file has.

A streamed model (`Weights.on_demand`) has its vectors and what stands outside of its blocks at all times. A block has
the values of its matrices while it runs. A matrix that was changed is kept in memory, in the type that the files have.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.files import TensorEntry, read_bytes, read_tensors, weight_files
from abridged.checkpoint.skeleton import put
from abridged.core.errors import AbridgedError
from abridged.core.names import gguf_file, resolve
from abridged.families.standin import skeleton, untie
from abridged.models.described import described

#: What says that a model needs the other runner.
ELSE = "use the whole-model runner (stages.*.runner=whole)"

#: Under which name a streamed model carries its weights, and a block that runs what it is lent values for.
_SOURCE, _LENT = "streamed_weights", "_lent"

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float32}


class Weights:
    """The safetensors files of a directory; `device` is where what is fetched goes.

    Attributes:
        model: of the class and config that the directory names, in evaluation mode, its parameters on the meta device.

    Raises:
        AbridgedError: there is no such directory, its files are damaged or lack a weight, or a weight of the model is
            none of theirs, but made of several.
    """

    def __init__(self, name: str | Path, device: torch.device | str = "cpu") -> None:
        directory = Path(resolve(name))
        if gguf_file(name) is not None or not directory.is_dir():
            raise AbridgedError(f"weights are streamed from safetensors in a directory, and {name} is none: {ELSE}")
        kind, config = described(name)
        if getattr(config, "quantization_config", None) is not None:
            raise AbridgedError(f"{name} is compressed already: a teacher must have its full-precision weights")
        self.name, self.device = str(name), torch.device(device)
        self.model: Any = skeleton(kind, config).requires_grad_(False)
        for module in self.model.modules():
            module._buffers.update(
                {leaf: None if one is None else one.to(device) for leaf, one in module._buffers.items()}
            )
        self._take_generation_config(directory)
        self._entries = self._by_name(read_tensors(weight_files(directory)))
        self._seen = {entry.file: _looks(entry.file) for entry in self._entries.values()}
        self._late: set[str] = set()  # matrices of blocks, where they are lent
        self._finite: set[str] = set()  # what has been looked through
        self._running: tuple[nn.Module, str] | None = None  # the block that was lent last, while it runs

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fill(self, model: nn.Module, names: Iterable[str]) -> None:
        """Give `model` the parameters and buffers of those names, in FP32; tied ones are one parameter.

        Raises:
            AbridgedError: a file is not what it was when it was opened, or a number is not finite.
        """
        tied: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        for name in names:
            if name not in self._entries:
                continue
            put(model, name, self._read(name, copy=True))
            for other, owner in tied.items():
                if owner == name:
                    _share(model, other, owner)

    def fingerprint(self) -> str:
        """A hash of all weights, as they lie in the files."""
        digest = hashlib.sha256()
        for name, entry in sorted(self._entries.items()):
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode())
            for data in read_bytes(entry, 1 << 22):
                digest.update(data)
        return digest.hexdigest()[:16]

    def on_demand(self, model: Any, blocks: Iterable[str]) -> Any:
        """Let `model`, one without weights, have those of a block's matrices while it runs; all else at once.

        Within autocast they are in its type, as a pass would have them anyway, else in FP32; a block that is run once
        more in a backward pass has them once more. Copies of the model are lent weights in the same way.
        """
        blocks = list(blocks)
        self._late = {name for path in blocks for name, one in _matrices(model, path)}
        self.fill(model, [name for name in model.state_dict() if name not in self._late])
        for path in blocks:
            block = model.get_submodule(path)
            block.register_forward_pre_hook(lambda module, given, path=path: self._lend(module, path))
            block.register_forward_hook(lambda module, given, output: self._take_back(module), always_call=True)
        setattr(model, _SOURCE, self)
        return model

    def __deepcopy__(self, memo: dict[int, Any]) -> Weights:
        return self  # of which copies of a streamed model have theirs, too

    @property
    def main_dtype(self) -> torch.dtype:
        """What the files have most of their tensors in."""
        return Counter(map(self.dtype, self._entries)).most_common(1)[0][0]

    def dtype(self, name: str) -> torch.dtype:
        """What the files have a parameter in; FP32 for one that is not theirs."""
        return _DTYPES.get(self._entries[name].dtype, torch.float32) if name in self._entries else torch.float32

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What `torch.utils.checkpoint` asks for where a block begins (`context_fn`): contexts for its pass, and for
        the one in which it is computed again, which goes past the hooks of modules."""
        return nullcontext(), nullcontext() if self._running is None else self._lent(*self._running)

    @contextmanager
    def _lent(self, block: nn.Module, path: str) -> Iterator[None]:
        self._lend(block, path)
        try:
            yield
        finally:
            self._take_back(block)

    def _lend(self, block: nn.Module, path: str) -> None:
        """Give a block's matrices their values, in the type that this pass computes in."""
        self._take_back(block)
        lent = {}
        tied: dict[str, str] = getattr(self.model, "all_tied_weights_keys", {})
        for name, parameter in _matrices(block, ""):
            module, leaf = _place(block, name)
            dtype, linear = torch.float32, isinstance(module, (nn.Linear, Conv1D))
            if linear and torch.is_autocast_enabled(self.device.type):
                dtype = torch.get_autocast_dtype(self.device.type)
            if parameter.is_meta:
                full = f"{path}.{name}"
                value = self._read(tied.get(full, full), dtype)
            elif parameter.dtype in (torch.float32, dtype):
                continue
            else:  # in FP32, which goes back to what it was
                value = parameter.detach().float()
            given = module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            lent[name] = parameter, _changes(given)
        setattr(block, _LENT, lent)
        self._running = block, path

    def _take_back(self, block: nn.Module) -> None:
        """Let go of what a block was lent; what became of a matrix that is kept in memory, in fewer bits, is kept."""
        self._running = None
        for name, (parameter, version) in block.__dict__.pop(_LENT, {}).items():
            module, leaf = _place(block, name)
            lent = module._parameters[leaf]
            if not parameter.is_meta and lent is not None and _changes(lent) != version:
                parameter.data.copy_(lent)
            module._parameters[leaf] = parameter

    def _read(self, name: str, dtype: torch.dtype = torch.float32, copy: bool = False) -> Tensor:
        """One tensor; without `copy` it is not to be changed, since it may be the file's own memory."""
        entry = self._entries[name]
        if _looks(entry.file) != self._seen[entry.file]:
            raise AbridgedError(f"{entry.file} was changed while the run read it: begin anew with --overwrite")
        try:
            with safe_open(entry.file, framework="pt") as file:
                stored = file.get_tensor(self._stored[name])
        except (OSError, SafetensorError) as error:
            raise AbridgedError(f"cannot read {entry.file}: {error}") from error
        if name not in self._finite and not bool(torch.isfinite(stored).all()):
            raise AbridgedError(f"the model '{self.name}' holds numbers that are not finite, in {name}")
        self._finite.add(name)
        return stored.to(self.device, dtype if stored.is_floating_point() else stored.dtype, copy=copy)

    def _by_name(self, stored: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
        """The files' tensors by the names that the model has for them."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        transforms = get_model_conversion_mapping(self.model)
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters: list[Any] = [one for one in transforms if not isinstance(one, WeightRenaming)]
        state, tied = self.model.state_dict(), getattr(self.model, "all_tied_weights_keys", {})
        self._stored: dict[str, str] = {}
        for name in stored:
            new, made_of = rename_source_key(name, renamings, converters, self.model.base_model_prefix, state)
            if made_of is not None:
                raise AbridgedError(f"{new} is made of several tensors of the files, such as {name}: {ELSE}")
            if new in state:
                self._stored[new] = name
        for new in [one for one in self._stored if tied.get(one) in state]:
            if self._same(stored, new, tied[new]):
                del self._stored[new]
            else:
                untie(self.model, [new])
        made = getattr(self.model, "_keys_to_ignore_on_load_missing", None) or ()
        own = getattr(self.model, "_keys_to_ignore_on_save", None) or ()
        for name, tensor in state.items():
            known = name in self._stored or name in tied or name in own
            if not known and tensor.is_meta and not any(re.search(pattern, name) for pattern in made):
                raise AbridgedError(f"the model '{self.name}' lacks the weights of {name}")
        for new, name in self._stored.items():
            if stored[name].shape != tuple(state[new].shape):
                sizes = f"{list(stored[name].shape)}, and config.json makes it {list(state[new].shape)}"
                raise AbridgedError(f"{stored[name].file}: {name} is {sizes}")
        return {new: stored[name] for new, name in self._stored.items()}

    def _same(self, stored: dict[str, TensorEntry], name: str, owner: str) -> bool:
        """Whether a tied weight is its owner's, as far as the files say: both may be there, with different values."""
        if owner not in self._stored:
            return True
        both = [safe_open(stored[self._stored[one]].file, framework="pt") for one in (name, owner)]
        with both[0] as first, both[1] as second:
            return torch.equal(first.get_tensor(self._stored[name]), second.get_tensor(self._stored[owner]))

    def _take_generation_config(self, directory: Path) -> None:
        if (directory / "generation_config.json").exists() and self.model.can_generate():
            from transformers import GenerationConfig

            self.model.generation_config = GenerationConfig.from_pretrained(directory)


@contextmanager
def changing(model: nn.Module, path: str) -> Iterator[None]:
    """Within, a module has its values, in FP32, and may be given others; a streamed model's keeps those it ends with,
    in the type that the files have them in. Of other models nothing is to be done."""
    source: Weights | None = getattr(model, _SOURCE, None)
    if source is None:
        yield
        return
    names = [name for name, _ in _matrices(model, path) if name in source._late]
    for name in names:
        before = model.get_parameter(name)
        _put(model, name, source._read(name, copy=True) if before.is_meta else before.detach().float())
    yield
    for name in names:
        _put(model, name, model.get_parameter(name).detach().to(source.dtype(name)))


def with_values(model: nn.Module, path: str) -> Any:
    """What has the `weight` and the `bias` of a module: of a streamed model, whether it runs now or not."""
    module: Any = model.get_submodule(path)
    source: Weights | None = getattr(model, _SOURCE, None)
    name = f"{path}.weight"
    if source is None or name not in source._late:
        return module
    return SimpleNamespace(weight=source._read(name), bias=getattr(module, "bias", None))


def _matrices(model: nn.Module, path: str) -> list[tuple[str, nn.Parameter]]:
    """Parameters of two dimensions and more, of a module or below it."""
    prefix = f"{path}." if path else ""
    found = model.get_submodule(path).named_parameters()
    return [(prefix + name, one) for name, one in found if one.dim() > 1]


def _changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place; never where torch does not count, since nobody may."""
    return 0 if tensor.is_inference() else tensor._version


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    """Let a parameter that does not learn have another value, and type."""
    module, leaf = _place(model, name)
    module._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the parameter of that name, and what it calls it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def within(model: nn.Module, path: str) -> list[str]:
    """The names of all parameters and buffers below a module."""
    return [f"{path}.{name}" for name in model.get_submodule(path).state_dict()]


def outside(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The names of all parameters and buffers that are below none of some modules."""
    prefixes = tuple(f"{path}." for path in paths)
    return [name for name in model.state_dict() if not name.startswith(prefixes)]


def empty(model: nn.Module, names: Iterable[str]) -> None:
    """Let go of the values of those parameters."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if (parameter := module._parameters.get(leaf)) is not None:
            module._parameters[leaf] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _share(model: nn.Module, name: str, owner: str) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = model.get_parameter(owner)


def _looks(file: Path) -> tuple[int, int]:
    """What changes with a file's content.

    Raises AbridgedError where it is gone.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise AbridgedError(f"cannot read {file}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns

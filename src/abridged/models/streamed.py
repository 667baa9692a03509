"""A dense model's weights as they lie on disk: a model is made without any, and is given those of a part in its time.

Instead of `from_pretrained`, which holds all weights at once. Files are memory-mapped, so that what is read is what was
asked for; a part is turned into FP32 when it is taken, whatever the file has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from abridged.checkpoint.files import TensorEntry, read_bytes, read_tensors, weight_files
from abridged.checkpoint.skeleton import put
from abridged.core.errors import AbridgedError
from abridged.core.names import gguf_file, resolve
from abridged.families.standin import skeleton, untie
from abridged.models.described import described

#: What says that a model needs the other runner.
ELSE = "use the whole-model runner (stages.*.runner=whole)"


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
            tensor = self._read(name)
            put(model, name, tensor)
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
        """Let `model`, one without weights, fetch each block's before it runs and let go of them after.

        What stands outside of the blocks is filled at once.
        """
        blocks = list(blocks)
        self.fill(model, outside(model, blocks))
        for path in blocks:
            block = model.get_submodule(path)
            block.register_forward_pre_hook(lambda module, given, path=path: self.fill(model, within(model, path)))
            block.register_forward_hook(lambda module, given, output, path=path: empty(model, within(model, path)))
        return model

    def _read(self, name: str) -> Tensor:
        entry = self._entries[name]
        if _looks(entry.file) != self._seen[entry.file]:
            raise AbridgedError(f"{entry.file} was changed while the run read it: begin anew with --overwrite")
        try:
            with safe_open(entry.file, framework="pt") as file:
                stored = file.get_tensor(self._stored[name])
        except (OSError, SafetensorError) as error:
            raise AbridgedError(f"cannot read {entry.file}: {error}") from error
        dtype = torch.float32 if stored.is_floating_point() else stored.dtype
        found = stored.to(self.device, dtype, copy=True)
        if not bool(torch.isfinite(found).all()):
            raise AbridgedError(f"the model '{self.name}' holds numbers that are not finite, in {name}")
        return found

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

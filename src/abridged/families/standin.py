"""A stand-in: a stock model of a class and a config, one block of each kind, with random weights that take no memory.

It is as wide as the model that it stands for, so that what is found of it holds as it is; that of 7B takes 35 MB:
1. the class is built with parameters on the meta device (`skeleton`), which tells every name and size;
2. of each list of alike blocks, one of each kind stays, under its own name;
3. parameters are filled: large matrices with overlapping windows of one short random vector, and where such a one is
   called it is as if it were sparse; embeddings and heads of large vocabularies have their first rows only.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from abridged.core.errors import AbridgedError

#: Tokens of the stand-in's pass, and the entries that large vocabularies keep.
TOKENS, ENTRIES = 6, 307
#: Frames of a video.
FRAMES = 2
#: Matrices of more numbers share theirs, each row beginning so many after the one before.
_SHARED_FROM = 1 << 20
_WINDOW = 61
#: Columns that a row of a large matrix reads where it is called.
_READ = 8


@dataclass(frozen=True)
class Table:
    """A linear layer or an embedding of the whole model: its size, however it is stored."""

    rows: int
    columns: int
    embedding: bool
    transposed: bool
    plain: bool  #: no subclass of nn.Embedding: looked up by the ids that it is given


@dataclass
class StandIn:
    """The model to be probed, and what the whole one is made of.

    Attributes:
        model: with one block of each kind.
        modules: the class of every module of the whole model, by path, in order.
        tables: its linear layers and embeddings, tied ones under every name.
        parameters: shapes of its parameters, tied ones once.
        ties: {path of a layer whose weight is another's: path of that one}.
        stacks: its lists of blocks: {path of the list: paths of the blocks}.
        like: {block: the block of its kind that `model` has}.
    """

    model: Any
    modules: dict[str, type]
    tables: dict[str, Table]
    parameters: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    stacks: dict[str, list[str]]
    like: dict[str, str]

    def block_of(self, path: str) -> str | None:
        """The block that a module is in."""
        return next((b for b in self.like if path == b or path.startswith(b + ".")), None)

    def as_probed(self, path: str) -> str:
        """Where in `model` the like of a module is."""
        block = self.block_of(path)
        return path if block is None else self.like[block] + path[len(block) :]


def plain_config(config: Any) -> Any:
    """A copy of a config without what says how a model is stored or run."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    config._attn_implementation = None
    for one in configs_within(config):
        for name, value in (("use_cache", True), ("dtype", None), ("architectures", None), ("_name_or_path", "")):
            if hasattr(one, name):
                setattr(one, name, value)
    return config


def configs_within(config: Any) -> list[Any]:
    """A config and those within it."""
    within = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    found = [config, *within, getattr(config, "decoder", None), config.get_text_config()]
    return list({id(one): one for one in found if hasattr(one, "to_dict")}.values())


@contextmanager
def in_plain_numbers() -> Iterator[None]:
    """On the CPU and in FP32: transformers asks for views while it makes a model of another type on the meta device."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _without_weights() -> Iterator[None]:
    """Parameters are made on the meta device; buffers have their values."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with in_plain_numbers():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def skeleton(kind: type, config: Any) -> Any:
    """The whole model of a class and a plain config, in evaluation mode; its parameters are on the meta device."""
    with torch.no_grad(), _without_weights():
        model = kind(copy.deepcopy(config)).float().eval()
    return model


def untie(model: Any, names: Iterable[str]) -> None:
    """Give a skeleton weights of its own where its class has tied them to others."""
    for name in names:
        model.all_tied_weights_keys.pop(name, None)
        path, _, leaf = name.rpartition(".")
        module, shared = model.get_submodule(path), model.get_parameter(name)
        module.register_parameter(leaf, nn.Parameter(torch.empty_like(shared), shared.requires_grad))


def stand_in(kind: type, config: Any, untied: Iterable[str] = (), whole: bool = False) -> StandIn:
    """The stand-in of a class and a plain config; `untied`: see `untie`; `whole`: with all blocks.

    Raises:
        AbridgedError: the model cannot be made of its config.
    """
    try:
        model = skeleton(kind, config)
        untie(model, untied)
    except Exception as error:  # whatever a config makes a class stumble over
        raise AbridgedError(f"{kind.__name__} cannot be made of its config: {error}") from error
    stacks = _stacks(model)
    declared: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    like = {block: block for blocks in stacks.values() for block in blocks}
    found = StandIn(
        model,
        modules={path: type(module) for path, module in model.named_modules()},
        tables={
            path: table
            for path, module in model.named_modules(remove_duplicate=False)
            if (table := _table(module)) is not None
        },
        parameters={
            name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False) if name not in declared
        },
        ties={
            t.removesuffix(".weight"): s.removesuffix(".weight") for t, s in declared.items() if t.endswith("weight")
        },
        stacks=stacks,
        like=like if whole else like | _kinds(model, stacks),
    )
    _drop(model, found)
    _fill(model, config)
    return found


def _table(module: nn.Module) -> Table | None:
    if not isinstance(module, (nn.Linear, nn.Embedding, Conv1D)):
        return None
    rows, columns = module.weight.shape[:: -1 if isinstance(module, Conv1D) else 1]
    embedding = isinstance(module, nn.Embedding)
    return Table(rows, columns, embedding, isinstance(module, Conv1D), type(module) is nn.Embedding)


def _stacks(model: nn.Module) -> dict[str, list[str]]:
    """The outermost lists of modules that are alike or all have linear layers: lists of blocks."""
    found: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if any(path.startswith(outer + ".") for outer in found):
            continue
        linear = [any(isinstance(m, (nn.Linear, Conv1D)) for m in entry.modules()) for entry in module]
        if all(linear) or (any(linear) and len({type(entry) for entry in module}) == 1):
            found[path] = [f"{path}.{name}" for name in module._modules]
    return found


def _kinds(model: nn.Module, stacks: dict[str, list[str]]) -> dict[str, str]:
    """{block: the first one of its list that has the same modules of the same sizes}."""
    found: dict[str, str] = {}
    for blocks in stacks.values():
        first: dict[Any, str] = {}
        for block in blocks:
            module = model.get_submodule(block)
            kind = (
                tuple((name, type(m)) for name, m in module.named_modules()),
                tuple((name, tuple(p.shape)) for name, p in module.named_parameters()),
            )
            found[block] = first.setdefault(kind, block)
    return found


def _drop(model: nn.Module, found: StandIn) -> None:
    """Leave the blocks out that others stand for; the others keep their names."""
    for path, blocks in found.stacks.items():
        entries: Any = model.get_submodule(path)._modules
        for block in blocks:
            if found.like[block] != block:
                del entries[block.rpartition(".")[2]]


@torch.no_grad()
def _fill(model: nn.Module, config: Any) -> None:
    """Give parameters random values at which no unit is dead and no softmax saturated; tied ones stay tied."""
    draw = torch.Generator().manual_seed(0)
    entries = getattr(config.get_text_config(), "vocab_size", 0) or 0
    cut = entries if entries > 8 * ENTRIES else None
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                fan = old.shape[0] if isinstance(module, Conv1D) else old[0].numel() if old.ndim > 1 else 0
                if id(old) not in made:
                    shape = tuple(ENTRIES if size == cut else size for size in old.shape)
                    std = 0.1 if old.ndim < 2 else 0.5 if isinstance(module, nn.Embedding) else fan**-0.5
                    values = _random(shape, std, draw)
                    made[id(old)] = nn.Parameter(values + 1 if old.ndim < 2 and name == "weight" else values)
                module._parameters[name] = made[id(old)]
        if isinstance(module, (nn.Linear, Conv1D)) and module.weight.numel() >= _SHARED_FROM:
            module.forward = _sparse(module, draw)  # type: ignore[method-assign]
        for name, buffer in module._buffers.items():
            if cut is not None and buffer is not None and cut in buffer.shape:
                module._buffers[name] = buffer.narrow(buffer.shape.index(cut), 0, ENTRIES)
        if cut is not None and isinstance(module, nn.Embedding) and module.num_embeddings == cut:
            module.padding_idx = None  # it may lie beyond
            if type(module) is nn.Embedding:
                module.forward = _around(module)  # type: ignore[method-assign]


def _random(shape: tuple[int, ...], std: float, draw: torch.Generator) -> Tensor:
    """Random numbers; of a large matrix, windows of one vector."""
    if len(shape) != 2 or shape[0] * shape[1] < _SHARED_FROM:
        return torch.randn(shape, generator=draw) * std
    rows, columns = shape
    return (torch.randn(rows * _WINDOW + columns, generator=draw) * std).as_strided(shape, (_WINDOW, 1))


def _sparse(module: Any, draw: torch.Generator) -> Any:
    """A large layer's forward with a few random columns a row: what would be seconds and a dense copy takes no time."""
    rows, columns = module.weight.shape[:: -1 if isinstance(module, Conv1D) else 1]
    read = torch.randint(columns, (_READ, rows), generator=draw)
    values = torch.randn((_READ, rows), generator=draw) * _READ**-0.5

    def forward(x: Tensor) -> Tensor:
        y = (x[..., read] * values).sum(-2)
        return y if module.bias is None else y + module.bias

    return forward


def _around(module: nn.Embedding) -> Any:
    """The forward of a table that was cut: ids that a model has of its own (BLIP's [ENC] is the last) go around."""

    def forward(ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids % len(module.weight), module.weight)

    return forward


def inputs_of(model: Any) -> dict[str, Tensor]:
    """One text of ids, pixels or features, whichever a pass of the model takes; of an encoder-decoder two texts."""
    draw = torch.Generator().manual_seed(0)
    taken = inspect.signature(model.forward).parameters
    configs = configs_within(model.config)
    found: dict[str, Tensor] = {}
    if "input_ids" in taken or "decoder_input_ids" in taken:
        ids = _ids(model.config.get_text_config(), draw)
        if "input_ids" in taken:
            found["input_ids"] = ids
        writes = model.config.is_encoder_decoder or hasattr(model, "text_decoder")  # BLIP's answers
        if "decoder_input_ids" in taken and writes:
            found["decoder_input_ids"] = ids.flip(1)
    sized = next((c for c in configs if hasattr(c, "image_size")), None)
    if "pixel_values" in taken and sized is not None:
        sides = sized.image_size if isinstance(sized.image_size, (list, tuple)) else [sized.image_size] * 2
        frames = [FRAMES] if hasattr(sized, "num_frames") else []  # of a video
        found["pixel_values"] = torch.randn(1, *frames, getattr(sized, "num_channels", 3), *sides, generator=draw)
    if "input_features" in taken and hasattr(model.config, "num_mel_bins"):
        frames = 2 * model.config.max_source_positions
        found["input_features"] = torch.randn(1, model.config.num_mel_bins, frames, generator=draw)
    return found


def _ids(config: Any, draw: torch.Generator) -> Tensor:
    """(1, TOKENS) different ids, none that means padding; the last ends the text, which BART's labels are read at."""
    entries = min(getattr(config, "vocab_size", ENTRIES), ENTRIES)
    ends = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    ids = [i for i in torch.randperm(entries, generator=draw).tolist() if i not in (config.pad_token_id, ends)]
    last = ends if isinstance(ends, int) and ends < entries else ids[TOKENS - 1]
    return torch.tensor([[*ids[: TOKENS - 1], last]])

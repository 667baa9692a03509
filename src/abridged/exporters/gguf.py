"""Export to a GGUF file, which llama.cpp and what is built on it run: every code as it is, the scales in FP16.

The stock converter of llama.cpp does not read GPT-2 directories of transformers 5 and stores a tied embedding in
6 bits, whatever it was trained for. So the file is written here, through the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.files import checked_directory
from abridged.checkpoint.load import load
from abridged.checkpoint.save import written_file
from abridged.checkpoint.skeleton import packed_modules
from abridged.errors import AbridgedError
from abridged.exporters.dense import dense_model
from abridged.exporters.gguf_blocks import BLOCK_TYPES, TQ1_0, TQ2_0, BlockType, encode
from abridged.exporters.gguf_families import GGUF_FAMILIES, GgufFamily, head_size
from abridged.exporters.gguf_layers import ARCHITECTURE, LayerSizes
from abridged.exporters.gguf_tokenizer import add_tokenizer
from abridged.exporters.uniform import layers_differ
from abridged.models import load_tokenizer
from abridged.runtime import ops
from abridged.runtime.kronecker import factored_modules
from abridged.runtime.modules import PackedLinear, PackedModule


def export_gguf(
    directory: str | Path,
    output: str | Path,
    ternary: str = "TQ2_0",
    dense_fallback: bool = False,
    dtype: str | None = None,
    uniform: bool = False,
) -> dict[str, Any]:
    """Write the compressed GPT-2, LLaMA or BERT in `directory` to the file `output`.

    Ternary codes go into `ternary` ("TQ2_0", 2.06 bits a weight, or "TQ1_0", 1.69 bits and slower), four levels into
    Q2_K, binary into Q1_0, 4 and 8 bits into Q4_0 and Q8_0; a tied embedding into the type of its codes too. Position
    embeddings keep their type, norms and biases are FP32 (llama.cpp asks for it). Activation quantisers have no place
    in the file: llama.cpp rounds activations to 8 bits in a way of its own. With `dtype` ("float16" or "float32") all
    matrices are dense with the quantised values, for engines that lack the block types. Kronecker factors, which
    GGUF does not have, and what was pruned can only be written so; `uniform` pads the layers of a pruned model with
    zeros to the one width that llama.cpp asks for, where it is no LLaMA: of that it reads sizes by layer.

    Returns "file_bytes", "types" (tensors of each type), "scale_error" (the largest relative error of a scale in
    FP16; 0 where all are exact), "dense" (matrices in F16 because no block fits, with `dense_fallback` only) and
    "notes" (sentences on what llama.cpp does otherwise).
    Raises AbridgedError: a family, configuration or tokenizer that llama.cpp runs otherwise, a width that no block
    fits, factors or a pruned model without `dtype`, pruned sizes that no stock model has, an output that exists or
    cannot be written.
    """
    if ternary not in ("TQ2_0", "TQ1_0"):
        raise AbridgedError(f"ternary weights are stored as TQ2_0 or TQ1_0, not {ternary!r}")
    if dtype not in (None, "float16", "float32"):
        raise AbridgedError(f"a dense GGUF file is of float16 or float32, not {dtype!r}")
    target = Path(output).expanduser().absolute()
    if target.exists():
        raise AbridgedError(f"{output} exists already: choose another output")
    source = checked_directory(directory)
    model = load(source)
    if dtype is None and factored_modules(model):
        raise AbridgedError(
            f"{directory} is stored as Kronecker factors, which GGUF does not have: --dtype float16 writes them "
            "multiplied out, as large as any dense model"
        )
    pruned = getattr(model, "shapes", None) is not None
    if dtype is None and pruned:
        raise AbridgedError(f"{directory} was pruned, and GGUF's blocks fit whole models: --dtype float16 goes without")
    layers = None
    by_layer = pruned and not uniform and model.config.model_type == "llama" and not factored_modules(model)
    if by_layer and layers_differ(model):
        layers = LayerSizes.of(model)
    elif pruned or factored_modules(model):
        model = dense_model(model, torch.float32, uniform)
    plan = _plan(model, TQ1_0 if ternary == "TQ1_0" else TQ2_0, dense_fallback, dtype, layers)
    writer = _gguf().GGUFWriter(None, plan.architecture)
    try:
        plan.family.describe(writer, layers.config if layers else model.config, source.name, layers)
        writer.add_file_type(plan.file_type)
        add_tokenizer(writer, load_tokenizer(source, model), model.config.vocab_size)
        for name, data, kind in plan.tensors(model):
            writer.add_tensor(name, data, raw_dtype=None if kind is None else _type(kind))
        with written_file(target) as temporary:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    finally:
        writer.close()
    return {"file_bytes": target.stat().st_size, **plan.account}


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise AbridgedError('GGUF export needs the gguf package: pip install "abridged[gguf]"') from None
    return gguf


def _type(kind: str) -> Any:
    return _gguf().GGMLQuantizationType[kind]


_NUMPY = {torch.float16: np.float16, torch.float32: np.float32}
_DENSE = {torch.float16: "F16", torch.float32: "F32"}


@dataclass
class _Plan:
    """What goes where, decided before anything is written; `account` is filled as tensors pass."""

    architecture: str
    family: GgufFamily
    blocks: dict[str, BlockType | None]  # of each packed module that stays packed; None is dense
    unread: tuple[str, ...]  # parts that llama.cpp does not run
    dense: torch.dtype
    layers: LayerSizes | None  # where they differ by layer
    account: dict[str, Any]

    @property
    def file_type(self) -> int:
        """What most of the matrices are; llama.cpp only shows it."""
        kinds = [kind.name if kind else _DENSE[self.dense] for kind in self.blocks.values()] or [_DENSE[self.dense]]
        most = max(kinds, key=kinds.count)
        return int(_gguf().LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])

    def tensors(self, model: Any) -> Iterator[tuple[str, Any, str | None]]:
        """(name in GGUF, data, type or None for that of the data) of every tensor."""
        modules = packed_modules(model)
        tied = set(getattr(model, "all_tied_weights_keys", {}))
        for name, tensor in model.state_dict().items():
            path, _, attribute = name.rpartition(".")
            is_part = attribute in ("weight", "bias") and "quantizer" not in path and tensor.numel()
            if not is_part or name in tied or path in self.unread:
                continue
            place = f"{self.family.place(path)}.{attribute}"
            if attribute == "weight" and path in self.blocks:
                yield place, *self._matrix(path, modules[path], _head_order(model, path))
            elif attribute == "weight" and path in modules:
                yield place, modules[path].dequantized().float().numpy(), None
            elif not modules and tensor.dim() == 2 and place.removesuffix(".weight") not in self.family.in_full:
                # factors multiplied out
                tensor = tensor.t() if isinstance(model.get_submodule(path), Conv1D) else tensor
                self._count(_DENSE[self.dense])
                yield place, _vector(tensor, False, _head_order(model, path)).astype(_NUMPY[self.dense]), None
            else:
                keep = tensor.dtype == torch.float16 and self.family.place(path) == "position_embd"
                yield place, _vector(tensor, keep, _head_order(model, path)), None
        for path, zeros in (self.layers.absent if self.layers else {}).items():
            kind = self.dense if zeros.dim() == 2 else zeros.dtype
            yield f"{self.family.place(path)}.weight", zeros.to(kind).numpy(), None

    def _matrix(self, path: str, module: PackedModule, order: torch.Tensor | None) -> tuple[Any, str | None]:
        kind = self.blocks[path]
        if kind is None:
            weight = module.dequantized() if order is None else module.dequantized()[order]
            self._count(_DENSE[self.dense])
            return weight.to(self.dense).numpy(), None
        levels = ops.unpack(module.weight, *module.storage)
        scale = ops._row_scales(module.weight_scale.float(), len(levels))
        if order is not None:
            levels, scale = levels[order], scale[order]
        exact = scale.numpy()
        with np.errstate(over="ignore"):
            rounded = exact.astype(np.float16).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise AbridgedError(f"a scale of {path} is too large for FP16, in which GGUF keeps scales")
        # relative down to FP16's smallest normal number: the row of a padding token has a scale of nearly nothing
        error = (np.abs(rounded - exact) / np.maximum(np.abs(exact), 2.0**-14)).max(initial=0.0)
        self.account["scale_error"] = max(self.account["scale_error"], float(error))
        self._count(kind.name)
        return encode(levels.numpy(), exact, kind), kind.name

    def _count(self, kind: str) -> None:
        self.account["types"][kind] = self.account["types"].get(kind, 0) + 1


def _vector(tensor: torch.Tensor, keep: bool, order: torch.Tensor | None) -> Any:
    tensor = tensor if order is None else tensor[order]
    return (tensor if keep else tensor.float()).contiguous().numpy()


def _head_order(model: Any, path: str) -> torch.Tensor | None:
    """The rows of LLaMA's Q and K in the order in which llama.cpp turns pairs: neighbours, not halves of a head."""
    if model.config.model_type != "llama" or not path.endswith(("q_proj", "k_proj")):
        return None
    config, module = model.config, model.get_submodule(path)
    size = head_size(config)
    rows = module.rows if isinstance(module, PackedModule) else module.out_features
    return torch.arange(rows).view(-1, 2, size // 2).transpose(1, 2).reshape(-1)


def _plan(model: Any, ternary: BlockType, dense_fallback: bool, dtype: str | None, layers: LayerSizes | None) -> _Plan:
    """Choose a block type for each matrix. Raises AbridgedError for what llama.cpp cannot hold or runs otherwise."""
    architecture = model.config.model_type
    family = GGUF_FAMILIES.get(architecture)
    if family is None:
        raise AbridgedError(f"GGUF export knows GPT-2, LLaMA and BERT, not models of type {architecture!r}")
    family.check(model.config)
    unread = family.unread(model.config)
    blocks: dict[str, BlockType | None] = {}
    for path, module in packed_modules(model).items():
        spec = module.spec
        if (isinstance(module, PackedLinear) and spec.tied) or path in unread or family.place(path) in family.plain:
            continue
        kind = ternary if spec.code_book == "ternary" else BLOCK_TYPES[spec.code_book]
        run = spec.columns if spec.num_scales <= spec.rows else spec.columns * spec.rows // spec.num_scales
        if run % kind.size == 0 and dtype is None:
            blocks[path] = kind
        elif dense_fallback or dtype is not None:
            blocks[path] = None
        else:
            what = f"width {spec.columns}" if run == spec.columns else f"groups of {run} in width {spec.columns}"
            raise AbridgedError(
                f"{path}: {what} cannot be cut into {kind.name}'s blocks of {kind.size} (a multiple of {kind.size} "
                "would fit); --dense-fallback stores such matrices as F16"
            )
    dense = [path for path, kind in blocks.items() if kind is None]
    return _Plan(
        ARCHITECTURE if layers else architecture,
        family,
        blocks,
        unread,
        getattr(torch, dtype or "float16"),
        layers,
        {"types": {}, "scale_error": 0.0, "dense": dense, "notes": family.notes(model.config)},
    )

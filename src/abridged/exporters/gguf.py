"""Export to a GGUF file, which llama.cpp and what is built on it run: every code as it is, the scales in FP16.

The stock converter of llama.cpp does not read GPT-2 directories of transformers 5 and stores a tied embedding in
6 bits, whatever it was trained for. So the file is written here, through the `gguf` package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.skeleton import packed_modules
from abridged.core.atomic import written_file
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name
from abridged.core.outputs import check_output
from abridged.exporters.dense import dense_model
from abridged.exporters.gguf_blocks import BLOCK_TYPES, Q2_0, TERNARY, BlockType, encode
from abridged.exporters.gguf_layers import LayerSizes
from abridged.exporters.gguf_tokenizer import add_generation, add_tokenizer
from abridged.exporters.uniform import layers_differ
from abridged.models.gguf_architectures import ARCHITECTURES, Architecture, rope_tensors
from abridged.models.gguf_types import gguf_package
from abridged.models.load import load_any, load_tokenizer
from abridged.models.sentence import sentence_settings_of
from abridged.runtime.kronecker import factored_modules
from abridged.runtime.modules import PackedModule
from abridged.storage.compressed import compressed_of

#: What dense matrices are called and stored as.
DENSE = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "q8_0": "Q8_0"}
#: llama.cpp's names for poolings; the mean and its multiple have one direction.
_POOLINGS = {"mean": "MEAN", "mean_sqrt_len_tokens": "MEAN", "cls": "CLS", "lasttoken": "LAST"}
#: What llama.cpp reads in FP32 only, though it has two dimensions.
_IN_FULL = ("TOKEN_TYPES", "ENC_ATTN_REL_B", "DEC_ATTN_REL_B")


def export_gguf(
    directory: str | Path,
    output: str | Path,
    ternary: str = "TQ2_0",
    dense_fallback: bool = False,
    dtype: str | None = None,
    uniform: bool = False,
    model: Any = None,
    instead: Mapping[str, BlockType] | None = None,
) -> dict[str, Any]:
    """Write the model `directory`, compressed or not, to the file `output`.

    Ternary codes go into `ternary` ("TQ2_0", 2.06 bits a weight, "TQ1_0", 1.69 bits and slower, or "Q2_0", 2.25 bits,
    which llama.cpp runs on GPUs too), into Q2_0 also where a width or a group fits its blocks of 64 alone; four levels
    from -1 into Q2_0, those around 0 into Q2_K, binary into Q1_0, 3 to 8 bits into Q4_0, Q5_0 and Q8_0, with zero
    points up to 5 bits into Q4_1 and Q5_1, whose minima are rounded to FP16; a tied embedding into the type of its
    codes too. Position embeddings keep their type, norms and biases are FP32 (llama.cpp asks for it). Activation
    quantisers have no place in the file: llama.cpp rounds activations to 8 bits in a way of its own. With `dtype`
    ("float16", "bfloat16" or "float32") all matrices are dense with the quantised values, for engines that lack the
    block types; those of a model that is not compressed are, in FP16 where nothing is said. "q8_0" is for both: codes
    go into blocks of 32 as they are, and dense weights are rounded. A model of sentences is pooled as its files say.
    Kronecker factors, which GGUF does not have, and what was pruned can only be written dense; `uniform` pads the
    layers of a pruned model with zeros to the one width that llama.cpp asks for, where it is no LLaMA: of that it reads
    sizes by layer. `model` is the model of `directory` where it is loaded already, and `instead` has other types by
    code book, for an engine that lacks some or is slow with them.

    Returns "file_bytes", "types" (tensors of each type), "scale_error" (the largest relative error of a scale in
    FP16; 0 where all are exact), "dense" (matrices in F16 because no block fits, with `dense_fallback` only) and
    "notes" (sentences on what llama.cpp does otherwise).
    Raises AbridgedError: a model type, configuration, head or tokenizer that llama.cpp runs otherwise or not at all, a
    width that no block fits, factors or a pruned model without `dtype`, pruned sizes that no stock model has, an
    output that exists or cannot be written.
    """
    if ternary not in TERNARY:
        raise AbridgedError(f"ternary weights are stored as {', '.join(TERNARY)}, not {ternary!r}")
    if dtype not in (None, *DENSE):
        raise AbridgedError(f"a dense GGUF file is of {', '.join(DENSE)}, not {dtype!r}")
    target = check_output(output, directory=False)
    model = load_any(directory) if model is None else model
    architecture = ARCHITECTURES.get(model.config.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise AbridgedError(f"GGUF export knows {known}, not models of type {model.config.model_type}")
    architecture.check(model)
    factored = bool(factored_modules(model))
    if dtype is None and factored:
        raise AbridgedError(
            f"{directory} is stored as Kronecker factors, which GGUF does not have: --dtype float16 writes them "
            "multiplied out, as large as any dense model"
        )
    pruned = compressed_of(model).shapes is not None
    if dtype is None and pruned:
        raise AbridgedError(f"{directory} was pruned, and GGUF's blocks fit whole models: --dtype float16 goes without")
    layers = None
    if pruned and not uniform and architecture.by_layer and not factored and layers_differ(model):
        layers = LayerSizes.of(model)
    elif pruned or factored:
        model = dense_model(model, torch.float32, uniform)
    config = layers.config if layers else model.config
    plan = _Plan(model, architecture, config, layers, dtype, instead or {})
    plan.choose_blocks(TERNARY[ternary], dense_fallback)
    writer = gguf_package().GGUFWriter(None, plan.name)
    writer.add_name(public_name(directory))
    writer.add_quantized_by("abridged")
    writer.add_quantization_version(2)
    pooled, notes = _pooling(model)
    notes += architecture.describe(writer, config, {**(layers.described if layers else {}), **pooled})
    writer.add_file_type(plan.file_type)
    tokenizer = load_tokenizer(directory, model)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    add_generation(writer, tokenizer, getattr(model, "generation_config", None))
    for name, data, kind in plan.tensors():
        writer.add_tensor(name, data, raw_dtype=None if kind is None else gguf_package().GGMLQuantizationType[kind])
    with written_file(target) as temporary:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()  # which writes, too
    return {
        "file_bytes": target.stat().st_size,
        "types": dict(plan.types),
        "scale_error": plan.scale_error,
        "dense": [path for path, kind in plan.blocks.items() if kind is None],
        "notes": notes,
    }


def _pooling(model: Any) -> tuple[dict[str, Any], list[str]]:
    """How llama.cpp pools what a model of sentences makes of a text, and what has to be known of that."""
    settings = sentence_settings_of(model)
    if settings is None or settings.assumed:
        return {}, []
    kind = _POOLINGS.get(settings.pooling)
    if kind is None or (settings.pooling == "mean_sqrt_len_tokens" and not settings.normalize):
        raise AbridgedError(f"llama.cpp pools by mean, cls or lasttoken, and this model by {settings.pooling}")
    notes = [] if settings.normalize else ["llama.cpp gives vectors length 1 where nobody says otherwise"]
    context = getattr(model.config, "max_position_embeddings", None)
    if settings.max_length is not None and context is not None and settings.max_length < context:
        notes.append(
            f"the model was made for {settings.max_length:,} tokens of a text, and llama.cpp reads {context:,}"
        )
    if settings.prompts:
        notes.append("the file has no prompts: what the model wants before a text is to be put there")
    return {"pooling_type": gguf_package().PoolingType[kind]}, notes


@dataclass
class _Plan:
    """What goes where; `types` and `scale_error` are filled as tensors pass."""

    model: Any
    architecture: Architecture
    config: Any
    layers: LayerSizes | None  # where they differ by layer
    dtype: str | None
    instead: Mapping[str, BlockType]
    blocks: dict[str, BlockType | None] = field(default_factory=dict)  # of each packed matrix; None is dense
    types: Counter[str] = field(default_factory=Counter)
    scale_error: float = 0.0

    def __post_init__(self) -> None:
        self.names = self.architecture.names(self.config)
        self.packed = packed_modules(self.model)
        self.tied = set(self.model.all_tied_weights_keys)

    @property
    def name(self) -> str:
        """Of the architecture."""
        return self.architecture.by_layer if self.layers and self.architecture.by_layer else self.architecture.name

    @property
    def file_type(self) -> int:
        """What most of the matrices are; llama.cpp only shows it."""
        kinds = [kind.name if kind else self._dense for kind in self.blocks.values()] or [self._dense]
        most = max(kinds, key=kinds.count)
        return int(gguf_package().LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])

    @property
    def _dense(self) -> str:
        return DENSE[self.dtype or "float16"]

    def place(self, path: str) -> tuple[str, str] | None:
        """(kind of tensor, llama.cpp's name) of the module at `path`; None for one that it does not run."""
        return self.architecture.place(self.model, self.names, path)

    def choose_blocks(self, ternary: BlockType, dense_fallback: bool) -> None:
        """Choose a block type for each packed matrix. Raises AbridgedError for what fits none."""
        for path, module in self.packed.items():
            spec = module.spec
            if f"{path}.codes" in self.tied or (place := self.place(path)) is None or place[0] in _IN_FULL:
                continue
            run = spec.columns if spec.num_scales <= spec.rows else spec.columns * spec.rows // spec.num_scales
            kind = BLOCK_TYPES.get(spec.code_book)
            if spec.code_book == "ternary":  # Q2_0's blocks are smaller
                kind = ternary if run % ternary.size == 0 else Q2_0
            if self.dtype == "q8_0":
                kind = None if spec.code_book.startswith("uint") else BLOCK_TYPES["int8"]
            kind = self.instead.get(spec.code_book, kind)
            if kind is not None and run % kind.size == 0 and self.dtype in (None, "q8_0"):
                self.blocks[path] = kind
            elif dense_fallback or self.dtype is not None:
                self.blocks[path] = None
            elif kind is None:
                raise AbridgedError(
                    f"{path}: GGUF has no block type of {spec.bits:g} bits with zero points; --dense-fallback stores "
                    "such matrices as F16"
                )
            else:
                what = f"width {spec.columns}" if run == spec.columns else f"groups of {run} in width {spec.columns}"
                raise AbridgedError(
                    f"{path}: {what} cannot be cut into {kind.name}'s blocks of {kind.size} (a multiple of {kind.size} "
                    "would fit); --dense-fallback stores such matrices as F16"
                )

    def tensors(self) -> Iterator[tuple[str, Any, str | None]]:
        """(name in GGUF, data, type or None for that of the data) of every tensor."""
        written = set()
        for name, tensor in self.model.state_dict().items():
            path, _, attribute = name.rpartition(".")
            attribute = "weight" if attribute == "codes" else attribute
            is_part = attribute in ("weight", "bias") and "quantizer" not in path and tensor.numel()
            if not is_part or name in self.tied or (place := self.place(path)) is None:
                continue
            written.add(f"{place[1]}.{attribute}")
            yield f"{place[1]}.{attribute}", *self._tensor(path, attribute, place[0], tensor)
        for name, tensor in rope_tensors(self.config).items():
            yield name, tensor.numpy(), None
        for name, zeros in (self.layers.absent(written) if self.layers else {}).items():
            yield name, *(self._in(self._dense, zeros) if zeros.dim() == 2 else (zeros.numpy(), None))

    def _tensor(self, path: str, attribute: str, kind: str, tensor: Tensor) -> tuple[Any, str | None]:
        """The data of one of the model's tensors and its type."""
        biases = self.architecture.biases
        if attribute == "bias" and not kind.endswith("NORM") and biases is not None and kind not in biases:
            raise AbridgedError(f"llama.cpp runs no {self.config.model_type} with a bias of {path}")
        module = self.packed.get(path) if attribute == "weight" else None
        rows = len(tensor) if module is None else module.rows
        order = self.architecture.rows[kind](self.config, rows) if kind in self.architecture.rows else slice(None)
        if module is not None and (block := self.blocks.get(path)) is not None:
            return self._blocks(path, module, block, order)
        weight = tensor if module is None else module.dequantized()
        if isinstance(self.model.get_submodule(path), Conv1D) and attribute == "weight":
            weight = weight.t()
        weight = weight.detach()[order]
        if attribute == "weight" and kind.endswith("NORM"):
            weight = weight.float() + self.architecture.norm_offset
            if kind == "DEC_OUTPUT_NORM" and getattr(self.config, "scale_decoder_outputs", False):
                weight = weight * self.config.hidden_size**-0.5  # T5 scales what its head reads; llama.cpp does not
        if kind in (*_IN_FULL, "POS_EMBD") or weight.dim() == 1:
            kept = kind == "POS_EMBD" and weight.dtype == torch.float16
            return (weight if kept else weight.float()).contiguous().numpy(), None
        if self.dtype is None and self.packed and path not in self.blocks:  # what a recipe left alone stays as it is
            return self._in("F16" if weight.dtype == torch.float16 else "F32", weight)
        dense = "F16" if self.dtype == "q8_0" and weight.shape[-1] % BLOCK_TYPES["int8"].size else self._dense
        self.types[dense] += 1
        return self._in(dense, weight)

    def _in(self, kind: str, weight: Tensor) -> tuple[Any, str | None]:
        if kind == "BF16":
            return weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy(), kind
        if kind == "Q8_0":
            from gguf import GGMLQuantizationType, quants

            return quants.quantize(weight.float().contiguous().numpy(), GGMLQuantizationType.Q8_0), kind
        return weight.to(torch.float16 if kind == "F16" else torch.float32).contiguous().numpy(), None

    def _blocks(self, path: str, module: PackedModule, kind: BlockType, order: Any) -> tuple[Any, str]:
        levels, exact = module.packed.levels()[order], module.packed.row_scales()[order].numpy()
        zeros = module.packed.row_zeros()
        zero = None if zeros is None else zeros[order].numpy()
        with np.errstate(over="ignore"):
            rounded = exact.astype(np.float16).astype(np.float32)
            smallest = np.zeros(1) if zero is None else (zero * exact).astype(np.float16)
        if not np.isfinite(rounded).all() or not np.isfinite(smallest).all():
            raise AbridgedError(f"a scale of {path} is too large for FP16, in which GGUF keeps scales")
        # relative down to FP16's smallest normal number: the row of a padding token has a scale of nearly nothing
        error = (np.abs(rounded - exact) / np.maximum(np.abs(exact), 2.0**-14)).max(initial=0.0)
        self.scale_error = max(self.scale_error, float(error))
        self.types[kind.name] += 1
        return encode(levels.numpy(), exact, kind, zero), kind.name

"""Export to an ordinary dense Hugging Face model whose weights have the quantised values: loads without abridged."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from abridged.checkpoint.files import checked_directory, safe_file
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.load import load
from abridged.checkpoint.save import written_whole
from abridged.checkpoint.skeleton import packed_modules
from abridged.errors import AbridgedError
from abridged.exporters.uniform import padded, uniform_config
from abridged.families import anatomy_of
from abridged.runtime.kronecker import factored_modules

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def export_dense(
    directory: str | Path,
    output: str | Path,
    dtype: Literal["float32", "float16"] = "float16",
    uniform: bool = False,
) -> dict[str, Any]:
    """Write the model in ``directory`` as a stock model of its architecture to ``output``; return its ``inspect``.

    Weights are ``level * scale``, exact in FP32 and rounded in FP16; Kronecker factors are multiplied out. Activation
    quantisers have no place in a stock model and are left out: it computes with full-precision activations.
    ``uniform``: pad the layers of a pruned model with zeros to one width.
    Raises :class:`AbridgedError` for an unreadable checkpoint, an unknown dtype, an output that cannot be written, or
    a pruned model of sizes that no stock model has.
    """
    if dtype not in ("float32", "float16"):
        raise AbridgedError(f"dense export knows the dtypes float32 and float16, not {dtype!r}")
    source = checked_directory(directory)
    if Path(output).expanduser().exists():
        raise AbridgedError(f"{output} exists already: choose another output")
    model = dense_model(load(source), getattr(torch, dtype), uniform)
    with written_whole(output) as temporary:
        model.save_pretrained(temporary)
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(safe_file(source, name), temporary / name)
        (temporary / "README.md").write_text(_card(Path(output).name, source, dtype), encoding="utf-8")
    return inspect(output)


def dense_model(packed: Any, dtype: torch.dtype, uniform: bool = False) -> Any:
    """A stock model with the dequantised weights of a packed one, factors multiplied out, in ``dtype``.

    ``uniform``: see ``export_dense``.
    """
    pruned = getattr(packed, "shapes", None) is not None
    config = uniform_config(packed, uniform) if pruned else copy.deepcopy(packed.config)
    del config.quantization_config
    config.dtype, config._attn_implementation = dtype, None
    with torch.device("meta"):
        model = type(packed)(config)
    fused = {matrix.name: matrix.fused for matrix in anatomy_of(model).matrices} if pruned else {}
    stock: dict[str, Tensor] = {}
    modules: dict[str, Any] = {**packed_modules(packed), **factored_modules(packed)}
    for name, tensor in model.state_dict().items():
        path, _, attribute = name.rpartition(".")
        if name in model.all_tied_weights_keys:
            continue
        if path in modules and attribute == "weight":
            weight = modules[path].dequantized()
            is_transposed = isinstance(model.get_submodule(path), Conv1D)
            found = (weight.t() if is_transposed else weight).to(dtype).contiguous()
        else:
            found = _tensor(packed, name, tensor)
            found = found.to(dtype if tensor.is_floating_point() else tensor.dtype)
        stock[name] = _fitted(found, model.get_submodule(path), tensor, fused.get(path, 1)) if pruned else found
    for name, source in model.all_tied_weights_keys.items():
        stock[name] = stock[source]
    model.load_state_dict(stock, assign=True)
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # what is not stored but computed when a model is made, such as rotary frequencies
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, packed.get_buffer(name).detach().clone())
    model.tie_weights()
    if hasattr(packed, "generation_config"):  # of a model that writes
        model.generation_config = copy.deepcopy(packed.generation_config)
    return model.eval()


def _tensor(packed: Any, name: str, like: Tensor) -> Tensor:
    """A tensor of a packed model; zeros where a block was removed."""
    try:
        found: Tensor = packed.get_parameter_or_buffer(name).detach()
    except AttributeError:
        return torch.zeros(like.shape, dtype=like.dtype)
    return found if found.numel() else torch.zeros(like.shape, dtype=like.dtype)


def _fitted(found: Tensor, module: Any, like: Tensor, fused: int) -> Tensor:
    """`found` padded to the shape of a stock model's tensor, whose rows are `fused` blocks."""
    if isinstance(module, Conv1D) and found.dim() == 2:
        return padded(found.t(), tuple(like.shape)[::-1], fused).t().contiguous()
    return padded(found, tuple(like.shape), fused)


def _card(name: str, source: Path, dtype: str) -> str:
    original = source / "README.md"
    text = original.read_text(encoding="utf-8") if original.is_file() and not original.is_symlink() else ""
    front, _, body = text.removeprefix("---\n").partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    front = "\n".join(line for line in front.splitlines() if not line.startswith("tags:"))
    note = (
        f"The quantised values of a model compressed with abridged, as ordinary {dtype} weights, Kronecker factors (if "
        "there were any) multiplied out: it loads with transformers alone and is as large as any dense model. "
        "Activations are not quantised here."
    )
    body = body.partition("\n## Bytes by part")[0]
    made = body[body.find("## How it was made") :] if "## How it was made" in body else ""
    return f"---\n{front or 'library_name: transformers'}\n---\n\n# {name}\n\n{note}\n\n{made}"

"""Export to an ordinary dense Hugging Face model whose weights have the quantised values: loads without abridged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from abridged import families
from abridged.checkpoint.files import CONFIG, copy_tokenizer, is_compressed, write_json_files
from abridged.checkpoint.inspect import inspect
from abridged.checkpoint.model_card import as_text
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.atomic import written_whole
from abridged.core.errors import AbridgedError
from abridged.core.names import resolve
from abridged.core.outputs import check_output
from abridged.exporters.uniform import padded, uniform_config
from abridged.families.standin import untie
from abridged.models.load import load_any, load_tokenizer
from abridged.models.sentence import read_sentence_settings
from abridged.runtime.kronecker import factored_modules
from abridged.storage.compressed import compressed_of
from abridged.storage.view import Run


def export_dense(
    directory: str | Path,
    output: str | Path,
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
    uniform: bool = False,
) -> dict[str, Any]:
    """Write the model ``directory`` as a stock model of its architecture to ``output``; return its ``inspect``.

    Weights are ``level * scale``, exact in FP32 and rounded in 16 bits; Kronecker factors are multiplied out, and what
    was not compressed is as it was. Activation quantisers have no place in a stock model and are left out: it computes
    with full-precision activations. The files of sentence-transformers come along.
    ``uniform``: pad the layers of a pruned model with zeros to one width.
    Raises :class:`AbridgedError` for an unreadable checkpoint, an unknown dtype, an output that cannot be written, or
    a pruned model of sizes that no stock model has.
    """
    if dtype not in ("float32", "float16", "bfloat16"):
        raise AbridgedError(f"dense export knows the dtypes float32, float16 and bfloat16, not {dtype!r}")
    check_output(output)
    packed, source = load_any(directory), Path(resolve(directory))
    model = dense_model(packed, getattr(torch, dtype), uniform)
    with written_whole(output) as temporary:
        model.save_pretrained(temporary)
        if (source / CONFIG).is_file():
            copy_tokenizer(source, temporary)
        else:
            load_tokenizer(directory).save_pretrained(temporary)
        card = _card(Path(output).name, source, dtype, is_compressed(source))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if (settings := read_sentence_settings(str(source))) is not None:
            write_json_files(temporary, dict(settings.files))
    return inspect(output)


def dense_model(packed: Any, dtype: torch.dtype, uniform: bool = False) -> Any:
    """A stock model of weights in ``dtype``: the dequantised ones of a packed model, or a dense one's as they are.

    Kronecker factors are multiplied out. ``uniform``: see ``export_dense``.
    """
    pruned = compressed_of(packed).shapes is not None
    config = uniform_config(packed, uniform) if pruned else copy.deepcopy(packed.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config._attn_implementation = dtype, None
    with torch.device("meta"):
        model = type(packed)(config)
    untie(model, families.untied(packed, model.all_tied_weights_keys))
    runs = {path: own for part in families.view(model).parts for path, own in part.runs.items()} if pruned else {}
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
        stock[name] = _fitted(found, model.get_submodule(path), tensor, runs.get(path, ())) if pruned else found
    for name, source in model.all_tied_weights_keys.items():
        stock[name] = stock[source]
    model.load_state_dict(stock, assign=True)
    if pruned:  # what a class makes itself (Marian's table of sines) was cut, and is not what it would make
        model._keys_to_ignore_on_save = set()
    for name, buffer in model.named_buffers():
        if buffer.is_meta:  # what is not stored but computed when a model is made, such as rotary frequencies
            parent, _, leaf = name.rpartition(".")
            held = getattr(packed.get_submodule(parent), leaf)  # a packed embedding keeps its scale as a number
            setattr(model.get_submodule(parent), leaf, torch.as_tensor(held).detach().clone())
    model.tie_weights(recompute_mapping=False)
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


def _fitted(found: Tensor, module: Any, like: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """`found` padded to the shape of a stock model's tensor, whose rows are units in `runs`."""
    if isinstance(module, Conv1D) and found.dim() == 2:
        return padded(found.t(), tuple(like.shape)[::-1], runs).t().contiguous()
    return padded(found, tuple(like.shape), runs)


def _card(name: str, source: Path, dtype: str, compressed: bool) -> str:
    original = source / "README.md"
    text = original.read_text(encoding="utf-8") if original.is_file() and not original.is_symlink() else ""
    front, _, body = text.removeprefix("---\n").partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    front = "\n".join(line for line in front.splitlines() if not line.startswith("tags:"))
    note = f"A model written by abridged as ordinary {dtype} weights; nothing of it was compressed."
    if compressed:
        note = (
            f"The quantised values of a model compressed with abridged, as ordinary {dtype} weights, Kronecker factors "
            "(if there were any) multiplied out: it loads with transformers alone and is as large as any dense model. "
            "Activations are not quantised here."
        )
    body = body.partition("\n## Bytes by part")[0]
    made = body[body.find("## How it was made") :] if "## How it was made" in body else ""
    return f"---\n{front or 'library_name: transformers'}\n---\n\n# {as_text(name)}\n\n{note}\n\n{made}"

"""Adapters beside a packed model: a directory of their own, which names the base and both digests.

- `adapter.safetensors`: `PATH.lora_A` (rank, columns) and `PATH.lora_B` (rows, rank) of each matrix that has them, the
  vectors that were trained, and `prompt_embeddings` (tokens, hidden), all in FP32.
- `abridged.json`: `adapter`, rank and alpha (null without such matrices) and digest; `base`, its name, where it lies
  from here, and its digest.
- the base's tokenizer.

The base's digest covers its weights, config and tokenizer, and the adapter's digest covers the base's.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged.checkpoint.files import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    CONFIG,
    RECORD,
    read_header,
    read_json,
    safe_file,
    write_json_files,
)
from abridged.core.digest import file_sha256
from abridged.core.errors import AbridgedError
from abridged.core.names import public_name
from abridged.families.kinds import context_of, is_encoder

if TYPE_CHECKING:
    from torch import Tensor

_A, _B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class AdapterFiles:
    """A directory of adapters whose digests are right, and the base that it names, which has not been read yet."""

    directory: Path
    base: Path
    base_sha256: str
    rank: int | None
    alpha: int | None


def adapter_digest(file_sha256: str, base_sha256: str, rank: int | None, alpha: int | None) -> str:
    """SHA-256 of all that decides what adapters do: their file, the base they were trained on, and their factor."""
    said = {"base": base_sha256, "file": file_sha256, "rank": rank, "alpha": alpha}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def base_digest(directory: Path) -> str | None:
    """The digest that a packed directory's config has of itself; loading the directory verifies it."""
    quantization = read_json(safe_file(directory, CONFIG)).get("quantization_config")
    return quantization.get("sha256") if isinstance(quantization, dict) else None


def read_adapter(directory: str | Path) -> AdapterFiles:
    """Check a directory of adapters, and find its base.

    Raises:
        AbridgedError: something is missing or not as it was written, another adapter lies there, or the base is not
            where the adapters say, or is another one.
    """
    path = Path(directory).expanduser()
    if (path / ADAPTER).exists() or (path / ADAPTER).is_symlink():
        raise AbridgedError(f"{path}: {ADAPTER} is of another adapter, which no digest covers: take it away")
    record = read_json(safe_file(path, RECORD))
    told, base = record.get("adapter"), record.get("base")
    numbers = told if isinstance(told, dict) else {}
    rank, alpha, sha256 = (numbers.get(key) for key in ("rank", "alpha", "sha256"))
    where, base_sha256 = (base.get(key) for key in ("path", "sha256")) if isinstance(base, dict) else (None, None)
    if (
        not isinstance(told, dict)
        or (type(rank), type(alpha)) not in ((int, int), (type(None), type(None)))
        or not isinstance(where, str)
        or not isinstance(base_sha256, str)
    ):
        raise AbridgedError(f"{path / RECORD} does not say of which base the adapters are, and with what factor")
    weights = safe_file(path, ADAPTER_WEIGHTS)
    if sha256 != adapter_digest(file_sha256(weights), base_sha256, rank, alpha):
        raise AbridgedError(f"{weights} does not match its sha256 in {RECORD}: it is damaged, or of another adapter")
    home = Path(os.path.normpath(path.absolute() / where))
    name = f"{path} is an adapter of {public_name(home)}"
    if not (home / CONFIG).is_file():
        raise AbridgedError(f"{name}, which is not at {home}: put that packed model there")
    if base_digest(home) != base_sha256:
        raise AbridgedError(f"{name}, but what is at {home} has another digest: it is not the model it was trained on")
    return AdapterFiles(path, home, base_sha256, rank, alpha)


def apply_adapter(found: AdapterFiles, model: Any) -> Any:
    """Give the base, which was loaded from `found.base`, the adapters; returns it.

    Raises:
        AbridgedError: it is another model, the adapters do not fit it, or hold numbers that are not finite.
    """
    import torch
    from safetensors.torch import load_file

    from abridged.runtime.adapters import inject
    from abridged.runtime.modules import PackedLinear, fixed_tensors
    from abridged.runtime.prompt import NAME, attach_prompt

    weights = found.directory / ADAPTER_WEIGHTS
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or quantizer.spec.sha256 != found.base_sha256:
        raise AbridgedError(f"{found.directory} is an adapter of another model than the one it was to be applied to")
    read_header(weights)
    tensors = {_place(model, name): tensor for name, tensor in load_file(weights).items()}
    if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise AbridgedError(f"{weights}: {min(bad)} is not finite (NaN or infinity)")
    paths = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    fixed = fixed_tensors(model)
    for path in paths:
        module = modules.get(path)
        a, b = tensors[path + _A], tensors.get(path + _B)
        if (
            not isinstance(module, PackedLinear)
            or b is None
            or (tuple(a.shape), tuple(b.shape)) != ((found.rank, module.columns), (module.rows, found.rank))
        ):
            raise AbridgedError(f"{weights}: the adapter of {path[:80]} does not fit the model")
    prompt = tensors.pop(NAME, None)
    if prompt is not None and not _reads(model, prompt):
        raise AbridgedError(f"{weights}: its prompt does not fit the model")
    vectors = {name: tensor for name, tensor in tensors.items() if not name.endswith((_A, _B))}
    for name, tensor in vectors.items():
        own = parameters.get(name)
        if own is None or id(own) in fixed or own.ndim > 1 or own.shape != tensor.shape:
            raise AbridgedError(f"{weights}: {name[:80]} does not fit the model")
    if not paths and not vectors and prompt is None:
        raise AbridgedError(f"{weights} holds nothing for this model")
    if found.rank is not None and found.alpha is not None:
        inject(model, paths, found.rank, found.alpha)
    if prompt is not None:
        attach_prompt(model, prompt.to(model.device))
    with torch.no_grad():
        for name, tensor in vectors.items():
            parameters[name].data = tensor.to(parameters[name])  # not in place: it may lie in the base's mapped file
        for path in paths:
            layer = model.get_submodule(path)
            for factor, name in ((layer.lora_A, _A), (layer.lora_B, _B)):
                factor["default"].weight.copy_(tensors[path + name])
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def save_adapter(model: Any, directory: Path, base: Path, output: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the adapters of a packed model into `directory`, and return abridged.json as written.

    What goes with the adapters is what may be trained (`requires_grad`). base: the packed directory that `model` was
    loaded from. output: where `directory` will be in the end. record: what else abridged.json shall tell.

    Raises:
        AbridgedError: a number in them is not finite, or the base has changed since it was loaded.
    """
    import torch
    from safetensors.torch import save_file

    from abridged.runtime.adapters import adapted
    from abridged.runtime.prompt import NAME, prompt_of

    layers, sha256 = adapted(model), model.hf_quantizer.spec.sha256
    if base_digest(base) != sha256:
        raise AbridgedError(f"{base} has changed since it was loaded: its adapters would be of another model")
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        for factor, name in ((layer.lora_A, _A), (layer.lora_B, _B)):
            tensors[path + name] = factor["default"].get_parameter("weight")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim < 2:
            tensors[name.replace(".base_layer.", ".")] = parameter
    if (prompt := prompt_of(model)) is not None:
        tensors[NAME] = prompt
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    if bad := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise AbridgedError(f"what was trained is not finite (NaN or infinity): {min(bad)}")
    one = next(iter(layers.values()), None)
    rank, alpha = (None, None) if one is None else (one.r["default"], one.lora_alpha["default"])
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    file = directory / ADAPTER_WEIGHTS
    record = {
        **record,
        "adapter": {
            "rank": rank,
            "alpha": alpha,
            "sha256": adapter_digest(file_sha256(file), sha256, rank, alpha),
            "bytes": file.stat().st_size,
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
        },
        "base": {
            "name": public_name(base),
            "path": os.path.relpath(base.absolute(), output.absolute()),
            "sha256": sha256,
        },
    }
    write_json_files(directory, {RECORD: record})
    return record


def _reads(model: Any, prompt: Tensor) -> bool:
    """Whether a prompt (tokens, hidden) is one for this model, and leaves it positions for a text."""
    if model.config.is_encoder_decoder or is_encoder(model.config) or prompt.dim() != 2:
        return False
    width = model.get_input_embeddings().embedding_dim
    return prompt.shape[1] == width and 1 <= len(prompt) < context_of(model.config)


def _place(model: Any, name: str) -> str:
    """What this model calls a tensor: `AutoModel` builds a body, whose paths have no prefix, or the other way about."""
    prefix = f"{model.base_model_prefix}."
    if model.base_model is model:
        return name.removeprefix(prefix)
    return name

"""Export in the compressed-tensors format ("pack-quantized"), which vLLM and transformers load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from abridged.checkpoint.files import checked_directory, copy_tokenizer
from abridged.checkpoint.load import load
from abridged.checkpoint.skeleton import packed_modules
from abridged.core.atomic import written_whole
from abridged.core.errors import AbridgedError
from abridged.core.outputs import check_output
from abridged.exporters.dense import dense_model
from abridged.runtime.kronecker import factored_modules
from abridged.runtime.modules import PackedLinear

BITS = {"binary": 2, "ternary": 2, "q2_0": 2, "quaternary": 4, "int3": 4, "int4": 4, "int5": 8, "int6": 8, "int8": 8}
"""Bits, of those that engines read, in which each code book's levels are integers around 0."""


def export_compressed_tensors(directory: str | Path, output: str | Path, dtype: str = "float16") -> dict[str, Any]:
    """Write the compressed model in `directory` to `output`, its linear layers packed and the rest in `dtype`.

    Levels are exact, binary ones in 2 bits and four levels around 0 in 4; scales are in `dtype`. The token embedding,
    and a head tied to it, are dense with the quantised values: transformers 5 does not load packed embeddings, though
    the compressed-tensors package unpacks them. Activations are not quantised. GPT-2's Conv1D becomes a linear layer,
    (out, in).

    Returns "file_bytes" and "types" (packed layers of each width in bits).
    Raises AbridgedError: no packed linear layer, Kronecker factors, zero points, an unknown dtype, an output that
    exists or cannot be written.
    """
    if dtype not in ("float16", "bfloat16", "float32"):
        raise AbridgedError(f"compressed-tensors export knows float16, bfloat16 and float32, not {dtype!r}")
    check_output(output)
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    except ImportError:
        raise AbridgedError(
            'this export needs the compressed-tensors package: pip install "abridged[compressed-tensors]"'
        ) from None
    from huggingface_hub import save_torch_state_dict

    source = checked_directory(directory)
    packed = load(source)
    if factored_modules(packed):
        raise AbridgedError(
            f"{directory} is stored as Kronecker factors, which compressed-tensors does not have: --format dense "
            "multiplies them out"
        )
    layers = {
        path: module
        for path, module in packed_modules(packed).items()
        if isinstance(module, PackedLinear) and not module.spec.tied
    }
    if not layers:
        raise AbridgedError(f"{directory} has no packed linear layer for compressed-tensors to hold")
    dense = dense_model(packed, getattr(torch, dtype))
    state: dict[str, Tensor] = {
        name: tensor for name, tensor in dense.state_dict().items() if name not in dense.all_tied_weights_keys
    }
    schemes: dict[str, tuple[int, str, int | None]] = {}
    for path, module in layers.items():
        spec = module.spec
        if module.zeros is not None:
            raise AbridgedError(
                f"{path} has zero points, which transformers does not load from compressed-tensors: --format dense has "
                "the same values"
            )
        bits, levels = BITS[spec.code_book], module.packed.levels()
        scale = module.packed.row_scales().to(getattr(torch, dtype))
        if spec.code_book == "q2_0":  # 2 bits hold -2 … 1
            levels, scale = -levels, -scale
        if not bool(torch.isfinite(scale).all()):
            raise AbridgedError(f"a scale of {path} is too large for {dtype}: choose another dtype")
        del state[f"{path}.weight"]
        state[f"{path}.weight_packed"] = pack_to_int32(levels, bits)
        state[f"{path}.weight_scale"] = scale.contiguous()
        state[f"{path}.weight_shape"] = torch.tensor([spec.rows, spec.columns])
        schemes[path] = (
            (bits, "channel", None) if scale.shape[1] == 1 else (bits, "group", spec.columns // scale.shape[1])
        )
    # what is dense: a tied head, or one that maps to the labels of a task
    plain = [path for path, module in dense.named_modules() if isinstance(module, nn.Linear) and path not in layers]
    dense.config.quantization_config = _config(schemes, ignore=plain)
    with written_whole(output) as temporary:
        dense.config.save_pretrained(temporary)
        if getattr(dense, "generation_config", None) is not None:
            dense.generation_config.save_pretrained(temporary)
        save_torch_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
        copy_tokenizer(source, temporary)
    size = sum(path.stat().st_size for path in Path(output).expanduser().glob("*.safetensors"))
    counts = Counter(f"int{bits}" for bits, _, _ in schemes.values())
    return {"file_bytes": size, "types": dict(counts)}


def _config(schemes: dict[str, tuple[int, str, int | None]], ignore: list[str]) -> dict[str, Any]:
    """The `quantization_config`: the commonest scheme for all linear layers, the others by the layers' names."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    common = Counter(schemes.values()).most_common()
    groups = {}
    for number, ((bits, strategy, size), _) in enumerate(common):
        named = [path for path, scheme in schemes.items() if scheme == (bits, strategy, size)]
        weights = QuantizationArgs(num_bits=bits, strategy=strategy, group_size=size)
        groups[f"group_{number}"] = QuantizationScheme(
            targets=named if number else ["Linear"], weights=weights, format="pack-quantized"
        )
    config = QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=ignore
    )
    described: dict[str, Any] = config.model_dump(mode="json")
    return described

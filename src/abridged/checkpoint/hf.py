"""transformers' side of the format: once this module is imported, ``from_pretrained`` builds packed models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from abridged.checkpoint.files import check_digest, read_tensors, safe_file
from abridged.checkpoint.format import QUANT_METHOD, ContentDigest, QuantizationSpec, parse_spec
from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from torch import Tensor

# Imported while transformers itself is being imported: torch modules of this package that need transformers' models
# are imported where they are used.


class AbridgedConfig(QuantizationConfigMixin):
    """``quantization_config`` as transformers carries it: a validated :class:`QuantizationSpec`."""

    def __init__(self, spec: QuantizationSpec | None = None, **data: Any) -> None:
        self.spec = parse_spec(data) if spec is None else spec
        self.quant_method = QUANT_METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.spec.to_dict()


class AbridgedQuantizer(HfQuantizer):
    """Rebuilds compressed modules before the weights load, and checks the files before and the values after."""

    quantization_config: AbridgedConfig

    def __init__(self, quantization_config: AbridgedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise AbridgedError(
                "abridged does not quantise while loading: use `abridged compress`, then load its output"
            )

    @property
    def spec(self) -> QuantizationSpec:
        return self.quantization_config.spec

    def update_attn_implementation(self, config: Any) -> Any:
        if any(module.kind == "attention" for module in self.spec.modules.values()):
            from abridged.runtime.attention import IMPLEMENTATION

            config._attn_implementation = IMPLEMENTATION  # the stock ones would pass over the quantisers
        return config

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        from abridged.checkpoint.skeleton import check_tensors, declare_ties, install, scope

        spec = scope(model, self.spec)
        install(model, spec)
        declare_ties(model, spec)
        if checkpoint_files is None:
            return
        paths = [Path(file) for file in checkpoint_files]
        tensors = read_tensors([safe_file(path.parent, path.name) for path in paths])
        check_digest(tensors, self.spec)
        # A base model, or a head of another kind, takes a part of the tensors: transformers reports what is left.
        if type(model).__name__ in (model.config.architectures or []):
            check_tensors(model, spec, tensors)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from abridged.checkpoint.skeleton import packed_modules
        from abridged.runtime.decoding import install
        from abridged.runtime.kronecker import factored_modules

        packed = packed_modules(model)
        for module in {**packed, **factored_modules(model)}.values():
            bias = getattr(module, "bias", None)
            if bias is not None:  # transformers pads that of a tied head to the length of what is tied, here of codes
                bias.data = bias.data[: module.rows]
        for path, module in packed.items():
            check_values(path, module)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        install(model)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors to write, each once and in its stored dtype; their digest goes into quantization_config."""
        from abridged.checkpoint.skeleton import scope, stored_tensors

        tensors = stored_tensors(model, scope(model, self.spec))
        self.spec.sha256 = digest_of(tensors, self.spec)
        return tensors, {}


def check_values(path: str, module: Any) -> None:
    """Raise :class:`AbridgedError` for codes outside the code book or scales that are not finite."""
    import numpy as np

    from abridged.checkpoint.packing import check_codes

    if module.weight.is_meta:  # offloaded to disk by accelerate, which reads it when it is used
        return
    try:
        check_codes(module.weight.data, *module.storage)
    except AbridgedError as error:
        raise AbridgedError(f"{path}: {error}") from None
    if not np.isfinite(module.weight_scale.detach().cpu().numpy()).all():
        raise AbridgedError(f"{path}: a scale is not finite")


def digest_of(tensors: dict[str, Tensor], spec: QuantizationSpec) -> str:
    """The :class:`ContentDigest` of tensors in their stored dtypes."""
    import torch

    from abridged.checkpoint.skeleton import SAFETENSORS_DTYPES

    digest = ContentDigest(spec)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.tensor(name, SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = AbridgedConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = AbridgedQuantizer

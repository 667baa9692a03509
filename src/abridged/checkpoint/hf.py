"""transformers' side of the format: once this module is imported, ``from_pretrained`` builds packed models."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from abridged.checkpoint.adapters import read_adapter
from abridged.checkpoint.files import (
    GENERATION,
    Content,
    TensorEntry,
    content_sha256,
    digest_file,
    is_adapter,
    settings_files,
)
from abridged.checkpoint.mapped import let_go
from abridged.checkpoint.verify import Verified, check_config, check_settings, verify
from abridged.core.errors import AbridgedError
from abridged.core.parallel import sharing
from abridged.storage.format import (
    FORMAT_VERSION,
    QUANT_METHOD,
    FileDigest,
    QuantizationSpec,
    parse_spec,
)

if TYPE_CHECKING:
    from torch import Tensor

    from abridged.storage.view import View

#: What BERT calls its token embedding.
_WORDS = "embeddings.word_embeddings"

# Imported while transformers itself is being imported: torch modules of this package that need transformers' models
# are imported where they are used.


class AbridgedConfig(QuantizationConfigMixin):
    """``quantization_config`` as transformers carries it: a validated :class:`QuantizationSpec`."""

    def __init__(self, spec: QuantizationSpec | None = None, **data: Any) -> None:
        self.spec = parse_spec(data) if spec is None else spec
        #: Of a tokenizer that was written where the model is about to be saved; see `save_checkpoint`.
        self.tokenizer: dict[str, FileDigest] = {}
        self.quant_method = QUANT_METHOD

    def to_dict(self) -> dict[str, Any]:
        return self.spec.to_dict()

    def __deepcopy__(self, memo: Any) -> AbridgedConfig:
        """Of what may change: transformers copies a config many times as it loads one, and modules' own never do."""
        copied = AbridgedConfig(self.spec.model_copy(update={"modules": dict(self.spec.modules)}))
        copied.tokenizer = dict(self.tokenizer)
        return copied


_verified: ContextVar[tuple[Path, Verified] | None] = ContextVar("verified", default=None)


@contextmanager
def already_verified(directory: Path, verified: Verified) -> Iterator[None]:
    """Load from that directory, within, without reading its files once more to verify them."""
    token = _verified.set((directory.resolve(), verified))
    try:
        yield
    finally:
        _verified.reset(token)


class AbridgedQuantizer(HfQuantizer):
    """Rebuilds compressed modules before the weights load, and checks the files before and the values after."""

    quantization_config: AbridgedConfig
    _halved: tuple[TensorEntry, ...] | list[TensorEntry] = ()  #: What files have in FP16 and models in another type.
    _unseen: Path | None = None  #: The directory, where the hub's generation config, fetched last, was not there yet.

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
        self, model: Any, checkpoint_files: list[str] | None = None, device_map: Any = None, **kwargs: Any
    ) -> None:
        from abridged.checkpoint.skeleton import (
            FileNames,
            check_tensors,
            declare_ties,
            declare_unsaved,
            install,
            refuse_split,
            scope,
            take_view,
        )

        stored, spec = self.spec, scope(model, self.spec)
        self.quantization_config.spec = spec  # what is saved from here says what this model is
        refuse_split(spec, device_map)
        if spec.view is not None and type(model).__name__ in (model.config.architectures or []):
            take_view(model, spec.view)
        install(model, spec)
        declare_ties(model, spec)
        declare_unsaved(model, spec)
        self._names = FileNames(model, spec)
        if checkpoint_files is None:
            return
        paths = [Path(file) for file in checkpoint_files]
        directory, known = paths[0].parent, _verified.get()
        is_known = known is not None and known[0] == directory.resolve()
        verified = known[1] if known is not None and is_known else verify(directory, paths, stored)
        self._unseen = None if GENERATION in verified.names else directory
        self._halved = [one for one in verified.tensors.values() if one.dtype == "F16"]
        if verified.spec != stored:
            raise AbridgedError(f"{directory}: the config that was given is not the one that is there")
        # A base model, or a head of another kind, takes a part of the tensors: transformers reports what is left.
        if type(model).__name__ in (model.config.architectures or []):
            check_tensors(model, spec, verified.tensors)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        import torch

        from abridged.checkpoint.skeleton import packed_modules
        from abridged.runtime.activations import StaticActivation
        from abridged.runtime.decoding import install
        from abridged.runtime.kronecker import factored_modules

        for path, factored in factored_modules(model).items():
            if any(parameter.is_meta for parameter in factored.parameters()):
                raise AbridgedError(f"{path} is stored in factors, which cannot stay on the disk: give it more memory")
        model._weight_conversions = []  # `save_pretrained` gets the names of files, and is to leave them as they are
        for path, module in packed_modules(model).items():
            check_values(path, module)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        for path, quantizer in model.named_modules():
            if isinstance(quantizer, StaticActivation):
                _check_activation(path, quantizer)
        if self._unseen is not None:
            check_settings(self._unseen, self.spec)
        if model.dtype != torch.float16:
            let_go(self._halved)  # they were widened, and are not read again
        install(model, model_view(model))
        keep_vocabulary(model)

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any) -> list[Any]:
        """The model's own, then what packed modules call the tensors of a file."""
        return [*weight_conversions, self._names]

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # what is not packed, and what is added to it

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors to write, each once and in its stored dtype; their digest goes into quantization_config."""
        from abridged.checkpoint.skeleton import choose_guard, stored_tensors
        from abridged.runtime.adapters import adapted
        from abridged.runtime.prompt import prompt_of

        if adapted(model) or prompt_of(model) is not None:
            raise AbridgedError("a packed model with adapters is stored as both, or folded: abridged finetune --fold")
        spec = self.spec
        model.config.quantization_config = self.quantization_config  # what was loaded has a copy
        spec.version, spec.guard = FORMAT_VERSION, choose_guard(model, spec)
        spec.files = _digest_settings(model) | self.quantization_config.tokenizer
        tensors = stored_tensors(model, spec)
        spec.sha256 = digest_of(tensors, spec)
        return tensors, {}


def _digest_settings(model: Any) -> dict[str, FileDigest]:
    """Of the config and the generation config as ``save_pretrained`` is about to write them."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")  # as it does itself, a little later
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return {name: digest_file(name, path) for name, path in settings_files(Path(folder)).items()}


def model_view(model: Any) -> View | None:
    """What a model is made of, where that can be known."""
    from abridged import families

    try:
        return families.view(model)
    except AbridgedError:  # of a type that cannot be described: it runs all the same
        return None


def keep_vocabulary(model: Any) -> None:
    """Let a model whose embedding is packed or factored say what transformers and peft, which look for a stock one,
    cannot find; and one with packed weights that these cannot be trained."""
    from abridged.runtime.modules import PackedModule
    from abridged.runtime.weight import StandIn

    if any(isinstance(module, PackedModule) for module in model.modules()):
        model.requires_grad_ = partial(_requires_grad, model)
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # of two towers, each with its own, or none
        return
    if isinstance(embedding, StandIn):
        model.resize_token_embeddings = partial(_resize_token_embeddings, model)
        model.get_submodule = partial(_get_submodule, model)


def _resize_token_embeddings(
    model: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
) -> Any:
    """The embedding, where it has that size."""
    embedding = model.get_input_embeddings()
    rows = embedding.num_embeddings
    wanted = rows if new_num_tokens is None else new_num_tokens
    wanted = -(-wanted // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
    if wanted != rows:
        raise AbridgedError(f"a compressed model keeps its {rows} tokens: resize it to {wanted} before compressing it")
    return embedding


def _requires_grad(model: Any, requires_grad: bool = True) -> Any:
    """Of all parameters: not to be asked for, since codes are among them; AbridgedError says what to do instead."""
    from torch import nn

    from abridged.runtime.weight import NO_GRADIENTS

    if requires_grad:
        raise AbridgedError(NO_GRADIENTS)
    return nn.Module.requires_grad_(model, False)


def _get_submodule(model: Any, target: str) -> Any:
    """Also the token embedding, by the one name under which peft's prompt tuning does not guess by sizes of weights."""
    from torch import nn

    return model.get_input_embeddings() if target == _WORDS else nn.Module.get_submodule(model, target)


def check_values(path: str, module: Any) -> None:
    """Raise :class:`AbridgedError` for codes or zero points outside the code book."""
    from abridged.storage.packing import check_codes, zeros_of

    if module.codes.is_meta:  # offloaded to disk by accelerate, which reads it when it is used
        return
    try:
        check_codes(module.codes.data, module.storage)
        if module.zeros is not None:
            check_codes(module.zeros.data, zeros_of(module.storage))
    except AbridgedError as error:
        raise AbridgedError(f"{path}: {error}") from None


def _check_activation(path: str, quantizer: Any) -> None:
    """Raise :class:`AbridgedError` for a scale that is not above 0, or a zero point that is none of the levels."""
    from abridged.runtime.activations import level_range

    if quantizer.scale.is_meta:
        return
    low, high = (0, 0) if quantizer.symmetric else level_range(quantizer.bits, False)
    if not float(quantizer.scale) > 0 or not low <= int(quantizer.zero_point) <= high:
        raise AbridgedError(f"{path}: the scale is not above 0, or the zero point is none of the levels")


def digest_of(tensors: dict[str, Tensor], spec: QuantizationSpec) -> str:
    """The :class:`ContentDigest` of tensors in their stored dtypes."""
    import torch

    from abridged.checkpoint.skeleton import SAFETENSORS_DTYPES

    def content(tensor: Tensor) -> Content:
        def read() -> list[memoryview]:
            return [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data]

        return Content(SAFETENSORS_DTYPES[tensor.dtype], tuple(tensor.shape), read)

    with sharing(sum(tensor.nbytes for tensor in tensors.values())) as start:
        return content_sha256(spec, {name: content(tensor) for name, tensor in tensors.items()}, start)()


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = AbridgedConfig
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = AbridgedQuantizer

_read_config = PreTrainedConfig.get_config_dict.__func__


def _get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' own, which checks a config of ours: a class made of absurd counts might not end. Of a directory of
    adapters it is the base's."""
    if args and isinstance(args[0], (str, Path)) and is_adapter(args[0]):
        args = (read_adapter(args[0]).base, *args[1:])
    data, left = _read_config(cls, *args, **kwargs)
    check_config(data)
    return data, left


PreTrainedConfig.get_config_dict = classmethod(_get_config_dict)

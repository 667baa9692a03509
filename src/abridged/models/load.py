"""Loads the models that people name: a hub name, a directory, or the bundled teacher."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abridged.checkpoint.files import ADAPTER, is_adapter, is_compressed, settings_files
from abridged.checkpoint.verify import check_counts
from abridged.core.errors import AbridgedError
from abridged.core.names import gguf_file, nearest, pretrained, resolve
from abridged.families import kinds
from abridged.families.kinds import LabelSet, architecture, class_named, labels_texts
from abridged.models import gguf_files
from abridged.models.sentence import read_sentence_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Heads that a config may name, beside those that write text.
_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")


def load_dense(name: str | Path, labels: LabelSet | None = None, head: str | None = None) -> "PreTrainedModel":
    """Load a full-precision model in FP32, in evaluation mode: a language model, an encoder-decoder, or an encoder
    with the head that its config names; of a model of sentence-transformers the body alone. A GGUF file is dequantised.

    Args:
        labels: give it a head for these labels; one that it has is kept where it is for the same labels.
        head: give it one of another kind: "QuestionAnswering" or "MaskedLM".

    Raises:
        AbridgedError: no such model, it cannot be read, or it is compressed already.
    """
    import transformers

    where, file = _where(name), gguf_file(name)
    try:
        config = load_config(name)
        if file is None and getattr(config, "quantization_config", None) is not None:
            raise AbridgedError(f"{name} is compressed already: a teacher must have its full-precision weights")
        new_head = head is not None or (labels is not None and not labels.fit(config))
        settings = {"ignore_mismatched_sizes": True, **labels.settings()} if labels and new_head else {}
        if settings and config.pad_token_id is None:  # a decoder gives its label where the padding begins
            ends = config.eos_token_id
            settings["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
        kind = head if labels is None else labels.head
        if file is not None:
            settings["config"] = config
        found = transformers.AutoModel if kind is None and _makes_vectors(name, config) else auto_class(config, kind)
        model, notes = found.from_pretrained(**where, dtype=torch.float32, output_loading_info=True, **settings)
    except AbridgedError:
        raise
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the model '{name}': {unreadable(name, error)}") from error
    if hasattr(model, "generation_config"):
        check_counts(model.generation_config.to_dict())
    absent = {*notes["missing_keys"], *(key for key, *_ in notes.get("mismatched_keys", ()))}
    missing = [key for key in absent if not (new_head and _is_new(model, config, key))]
    if missing:  # transformers would go on with random numbers
        raise AbridgedError(f"the model '{name}' lacks the weights of {min(missing)}")
    if file is not None:  # it is dense now
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
        gguf_files.check(file, model)
    return _finite(model, name)


def _makes_vectors(name: str | Path, config: Any) -> bool:
    """Whether a model is one of sentence-transformers, whose configs name heads that their files may not have."""
    labels = architecture(config).endswith("ForSequenceClassification")  # a cross-encoder
    return not labels and read_sentence_settings(resolve(name)) is not None


def _where(name: str | Path) -> dict[str, Any]:
    """`pretrained`, of a directory from which nothing is read that is not in it.

    Raises:
        AbridgedError: see `pretrained`; or the directory has links that lead out of it, whose content would be handed
            on with the tokenizer, or an adapter, which another model may belong to.
    """
    where = pretrained(name)
    directory = Path(where["pretrained_model_name_or_path"])
    if directory.is_dir():
        settings_files(directory)
        if (directory / ADAPTER).exists():
            raise AbridgedError(f"{name} holds an adapter, {ADAPTER}: merge it into its model, and name that")
    return where


def load_config(name: str | Path) -> Any:
    """The config of a model, without its weights.

    Raises:
        AbridgedError: no such directory or file, or a GGUF file that is damaged; of what else is wrong transformers'
            own errors tell.
    """
    from transformers import AutoConfig, PreTrainedConfig

    where, file = _where(name), gguf_file(name)
    if file is None:
        check_counts(PreTrainedConfig.get_config_dict(**where)[0])
        return AutoConfig.from_pretrained(**where)
    gguf_files.rounded_as(file)  # a damaged file is reported in one sentence
    config = AutoConfig.from_pretrained(**where)
    gguf_files.complete(file, config)
    return config


def rounding_of(name: str | Path) -> str | None:
    """A sentence on how a model's weights were rounded before they came here, where they were: in a GGUF file.

    Raises:
        AbridgedError: the file is damaged.
    """
    file = gguf_file(name)
    kind = None if file is None else gguf_files.rounded_as(file)
    return kind and f"the teacher was itself rounded, to {kind}: what is lost is lost relative to this copy"


def load_any(name: str | Path) -> "PreTrainedModel":
    """Load a compressed directory packed, one of adapters with its base, anything else dense; in evaluation mode.

    Raises:
        AbridgedError: it cannot be loaded.
    """
    from abridged.checkpoint.load import load

    where = resolve(name)
    if not is_packed(where):
        return load_dense(name)
    model: PreTrainedModel = load(where)
    return model


def is_packed(where: str | Path) -> bool:
    """Whether a local directory holds a compressed model, or adapters of one."""
    return Path(where).is_dir() and (is_compressed(where) or is_adapter(where))


def _finite(model: "PreTrainedModel", name: str | Path) -> "PreTrainedModel":
    """The model in evaluation mode; AbridgedError if a number of it is not finite."""
    bad = next((n for n, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()), None)
    if bad:
        raise AbridgedError(f"the model '{name}' holds numbers that are not finite, in {bad}")
    return model.eval()


def load_masked(name: str | Path) -> "PreTrainedModel":
    """Load a masked language model in evaluation mode.

    Raises:
        AbridgedError: it cannot be read, or has no head for masks.
    """
    from transformers import AutoModelForMaskedLM

    try:
        model, notes = AutoModelForMaskedLM.from_pretrained(**_where(name), output_loading_info=True)
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the masked language model '{name}': {unreadable(name, error)}") from error
    if notes["missing_keys"]:
        raise AbridgedError(f"the model '{name}' has no head for masks: it lacks {min(notes['missing_keys'])}")
    return _finite(model, name)


def load_base(name: str | Path) -> "PreTrainedModel":
    """Load the body of a model, whatever head it has, in evaluation mode.

    Raises:
        AbridgedError: it cannot be read.
    """
    from transformers import AutoModel

    try:
        model: PreTrainedModel = AutoModel.from_pretrained(**_where(name))
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the model '{name}': {unreadable(name, error)}") from error
    return _finite(model, name)


def load_model(model: str | Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A compressed directory (packed) or any language model or encoder-decoder (dense), with its tokenizer.

    Raises:
        AbridgedError: one of them cannot be loaded, or they do not fit each other.
    """
    loaded = load_any(model)
    return loaded, load_tokenizer(model, loaded)


def load_tokenizer(name: str | Path, model: "PreTrainedModel | None" = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model, and check that it fits.

    Raises:
        AbridgedError: there is none, or it has more entries than the model's vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(**_where(name))
        if (file := gguf_file(name)) is not None:
            gguf_files.split_as_stored(file, tokenizer)
    except AbridgedError:
        raise
    except Exception as error:
        raise AbridgedError(f"cannot load the tokenizer of '{name}': {unreadable(name, error)}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes where there are no files
        raise AbridgedError(f"cannot load the tokenizer of '{name}': it has no vocabulary")
    if model is not None and tokenizer.pad_token is None and labels_texts(model):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    entries = 0 if model is None else model.config.get_text_config().vocab_size
    if model is not None and len(tokenizer) > entries:
        raise AbridgedError(
            f"the tokenizer of '{name}' does not fit the model: {len(tokenizer)} entries for a vocabulary of {entries}"
        )
    return tokenizer


def is_encoder(name: str | Path) -> bool:
    """Whether the model of that name reads texts and writes none; False where its config cannot be read."""
    try:
        return kinds.is_encoder(load_config(name))
    except Exception:  # loading the model says what is wrong
        return False


def auto_class(config: Any, head: str | None = None) -> Any:
    """The class that makes a model of `config`: with `head`, or the one that it names, else to write text; an encoder
    without a head is one."""
    import transformers

    if head is not None:
        return getattr(transformers, f"AutoModelFor{head}")
    for head in _HEADS:
        auto = getattr(transformers, f"AutoModelFor{head}")
        if architecture(config).endswith(f"For{head}") and type(config) in auto._model_mapping:
            return auto
    if getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    if kinds.is_encoder(config) or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return class_named(config) or transformers.AutoModel
    return transformers.AutoModelForCausalLM


def _is_new(model: Any, config: Any, key: str) -> bool:
    """Whether a weight that a file lacks belongs to a new head: outside of the body, or in a part of it, such as a
    pooler, that models of the architecture which the file's config names do without."""
    inner = key.removeprefix(f"{model.base_model_prefix}.")
    if inner == key:
        return True
    named: Any = class_named(config)
    if named is None:
        return False
    with torch.device("meta"):
        body = named._from_config(config).base_model
    return inner not in dict(body.named_parameters())


def weights_hash(model: "PreTrainedModel") -> str:
    """A hash of a model's parameters, by name and value."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def unreadable(name: str | Path, error: Exception) -> str:
    """Why a model could not be read: of what is neither here nor on the hub, both; in transformers' own words but for
    what those ask people to type in Python."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is run with --trust-remote-code only"
    if Path(resolve(name)).exists():
        return first_line(error)
    told = f"there is no such file or directory{nearest(name)}".removesuffix("?")
    return f"{told}, and the hub does not give it either: {first_line(error)}"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

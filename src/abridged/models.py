"""Loads the models that people name: a hub name, a directory, the bundled teacher, or a config of a new one."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abridged.errors import AbridgedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Heads of encoders that a config may name.
_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
#: Where the weights of a head for labels are, which a model without one lacks.
_LABEL_HEADS = ("classifier.", "score.", "qa_outputs.", "bert.pooler.", "roberta.pooler.")
#: Ids of `abridged.data.tokenizer.ENCODER_TOKENS` under the names that configs have for them.
ENCODER_SPECIALS = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
#: The name of the small teacher in the package's assets.
BUNDLED = "bundled"


def resolve(name: str | Path) -> str:
    """The directory of the bundled teacher for `bundled`; anything else as it is."""
    return (
        str(files("abridged") / "assets" / "teacher")
        if str(name) == BUNDLED
        else str(Path(name).expanduser() if _is_path(name) else name)
    )


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith(("~", ".", "/")) or Path(name).exists()


def load_dense(name: str | Path, labels: "LabelSet | None" = None, answers: bool = False) -> "PreTrainedModel":
    """Load a full-precision model in FP32, in evaluation mode: a language model, an encoder-decoder, or an encoder
    with the head that its config names.

    Args:
        labels: give it a head for these labels; one that it has is kept where it is for the same labels.
        answers: give it a head that finds answers in paragraphs.

    Raises:
        AbridgedError: no such model, it cannot be read, or it is compressed already.
    """
    from transformers import AutoConfig

    where = resolve(name)
    try:
        config = AutoConfig.from_pretrained(where)
        if getattr(config, "quantization_config", None) is not None:
            raise AbridgedError(f"{name} is compressed already: a teacher must have its full-precision weights")
        new_head = answers or (labels is not None and not labels.fit(config))
        settings = {"ignore_mismatched_sizes": True, **labels.settings()} if labels and new_head else {}
        if settings and config.pad_token_id is None:  # a decoder gives its label where the padding begins
            ends = config.eos_token_id
            settings["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
        kind = "QuestionAnswering" if answers else "SequenceClassification" if labels is not None else None
        model, notes = _auto_class(config, kind).from_pretrained(
            where, dtype=torch.float32, output_loading_info=True, **settings
        )
    except AbridgedError:
        raise
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the model '{name}': {_first_line(error)}") from error
    absent = {*notes["missing_keys"], *(key for key, *_ in notes.get("mismatched_keys", ()))}
    missing = [key for key in absent if not (new_head and key.startswith(_LABEL_HEADS))]
    if missing:  # transformers would go on with random numbers
        raise AbridgedError(f"the model '{name}' lacks the weights of {min(missing)}")
    bad = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if bad:
        raise AbridgedError(f"the model '{name}' holds numbers that are not finite, in {bad}")
    return model.eval()


def load_any(name: str | Path) -> "PreTrainedModel":
    """Load a compressed directory packed, anything else dense; in evaluation mode.

    Raises:
        AbridgedError: it cannot be loaded.
    """
    from abridged.checkpoint.files import is_compressed
    from abridged.checkpoint.load import load

    where = resolve(name)
    if not (Path(where).is_dir() and is_compressed(where)):
        return load_dense(name)
    model: PreTrainedModel = load(where)
    return model


def load_masked(name: str | Path) -> "PreTrainedModel":
    """Load a masked language model in evaluation mode.

    Raises:
        AbridgedError: it cannot be read, or has no head for masks.
    """
    from transformers import AutoModelForMaskedLM

    try:
        model, notes = AutoModelForMaskedLM.from_pretrained(resolve(name), output_loading_info=True)
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the masked language model '{name}': {_first_line(error)}") from error
    if notes["missing_keys"]:
        raise AbridgedError(f"the model '{name}' has no head for masks: it lacks {min(notes['missing_keys'])}")
    return model.eval()


def load_base(name: str | Path) -> "PreTrainedModel":
    """Load the body of a model, whatever head it has, in evaluation mode.

    Raises:
        AbridgedError: it cannot be read.
    """
    from transformers import AutoModel

    try:
        model: PreTrainedModel = AutoModel.from_pretrained(resolve(name))
    except Exception as error:  # transformers and the hub raise many kinds; to a person they all mean the same
        raise AbridgedError(f"cannot load the model '{name}': {_first_line(error)}") from error
    return model.eval()


def is_encoder_decoder(model: "PreTrainedModel") -> bool:
    """Whether a model reads one text and writes another, rather than going on with one."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def is_encoder(name: str | Path) -> bool:
    """Whether the model of that name reads texts and writes none; False where its config cannot be read."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(name)).model_type in ("bert", "roberta")
    except Exception:  # loading the model says what is wrong
        return False


def labels_texts(model: Any) -> bool:
    """Whether a model gives a label or a score to a text."""
    return type(model).__name__.endswith("ForSequenceClassification")


def finds_answers(model: Any) -> bool:
    """Whether a model finds where in a paragraph the answer to a question is."""
    return type(model).__name__.endswith("ForQuestionAnswering")


def is_language_model(model: Any) -> bool:
    """Whether a model goes on with a text."""
    return bool(model.can_generate()) and not is_encoder_decoder(model)


@dataclass(frozen=True)
class LabelSet:
    """What a model that labels texts is to tell apart; no names = it is to give a score."""

    names: tuple[str, ...] | None

    def settings(self) -> dict[str, Any]:
        """Settings of a config."""
        if self.names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        ids = dict(enumerate(self.names))
        return {"num_labels": len(ids), "id2label": ids, "label2id": {name: i for i, name in ids.items()}}

    def fit(self, config: Any) -> bool:
        """Whether the model of `config` has a head for them already, in whatever order."""
        if not _architecture(config).endswith("ForSequenceClassification"):
            return False
        return config.num_labels == 1 if self.names is None else set(self.names) == set(config.label2id)


def _architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [""])[0])


def _auto_class(config: Any, head: str | None = None) -> Any:
    """The class that makes a model of `config`: with `head`, or the one that it names, else to write text."""
    import transformers

    if head is not None:
        return getattr(transformers, f"AutoModelFor{head}")
    for head in _HEADS:
        if _architecture(config).endswith(f"For{head}"):
            return getattr(transformers, f"AutoModelFor{head}")
    if getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def load_tokenizer(name: str | Path, model: "PreTrainedModel | None" = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model, and check that it fits.

    Raises:
        AbridgedError: there is none, or it has more entries than the model's vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except Exception as error:
        raise AbridgedError(f"cannot load the tokenizer of '{name}': {_first_line(error)}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes where there are no files
        raise AbridgedError(f"cannot load the tokenizer of '{name}': it has no vocabulary")
    if model is not None and tokenizer.pad_token is None and labels_texts(model):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    if model is not None and len(tokenizer) > model.config.vocab_size:
        raise AbridgedError(
            f"the tokenizer of '{name}' does not fit the model: {len(tokenizer)} entries for a vocabulary of "
            f"{model.config.vocab_size}"
        )
    return tokenizer


def create_from_config(
    path: Path, text: Callable[[], str], seed: int | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", dict[str, Any]]:
    """Make an untrained model and a tokenizer learned on what `text` gives, from a YAML file.

    The file has `architecture` (a transformers model type), `model` (its config's keys), `tokenizer` (`vocab_size`, and
    `data`: the text to learn it on, where it is not the training text) and optionally `training` (defaults for it).

    Raises:
        AbridgedError: the file cannot be read, or a key in it is unknown or wrong.
    """
    from transformers import AutoConfig

    from abridged.data.text import load_text
    from abridged.data.tokenizer import learn_tokenizer
    from abridged.settings_text import nearest, parse_yaml

    try:
        described = parse_yaml(path.read_text(), str(path))
        unknown = set(described) - {"architecture", "model", "tokenizer", "training"}
        if unknown:
            raise AbridgedError(
                f"{path}: unknown key {', '.join(sorted(unknown))} (known: architecture, model, tokenizer, training)"
            )
        known = AutoConfig.for_model(described["architecture"])
        for key in described.get("model", {}):
            if not hasattr(known, key):
                raise AbridgedError(f"{path}: unknown key model.{key}{nearest(key, known.to_dict())}")
        vocab_size = int(described["tokenizer"]["vocab_size"])
        learned_on = described["tokenizer"].get("data")
        encoder = bool(getattr(known, "is_encoder_decoder", False))
        specials = dict(ENCODER_SPECIALS if encoder else {"bos_token_id": 0, "eos_token_id": 0})
        sizes = {"vocab_size": vocab_size, **specials, **described.get("model", {})}
        config = AutoConfig.for_model(described["architecture"], **sizes)
    except AbridgedError:
        raise
    except Exception as error:
        raise AbridgedError(f"cannot make a model from {path}: {_first_line(error)}") from error
    context = int(config.max_position_embeddings)
    tokenizer = learn_tokenizer(load_text(learned_on).train if learned_on else text(), vocab_size, context, encoder)
    if not encoder:
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    training = described.get("training", {})
    torch.manual_seed(training.get("seed", 0) if seed is None else seed)
    return _auto_class(config).from_config(config), tokenizer, training


def weights_hash(model: "PreTrainedModel") -> str:
    """A hash of a model's parameters, by name and value."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def set_dropout(model: torch.nn.Module, probability: float) -> None:
    """Set every dropout of a model, attention's included, without changing the config that is saved."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def set_checkpointing(model: "PreTrainedModel", enabled: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if enabled else 'disable'}")()


def public_name(name: str | Path) -> str:
    """A name as others may read it: of a path only its last part, so that no private folder is published."""
    return Path(name).expanduser().absolute().name if _is_path(name) else str(name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""What a model is for, as its class and config tell."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from abridged.families import quirks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_encoder_decoder(model: "PreTrainedModel") -> bool:
    """Whether a model reads one text and writes another, rather than going on with one."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def labels_texts(model: Any) -> bool:
    """Whether a model gives a label or a score to a text."""
    return type(model).__name__.endswith("ForSequenceClassification")


def labels_tokens(model: Any) -> bool:
    """Whether a model gives a label to each token of a text."""
    return type(model).__name__.endswith("ForTokenClassification")


def fills_masks(model: Any) -> bool:
    """Whether a model says which tokens were masked."""
    return type(model).__name__.endswith("ForMaskedLM")


def finds_answers(model: Any) -> bool:
    """Whether a model finds where in a paragraph the answer to a question is."""
    return type(model).__name__.endswith("ForQuestionAnswering")


def reads_videos(model: Any) -> bool:
    """Whether a model reads videos beside texts."""
    modalities = getattr(type(model), "input_modalities", ())
    return tuple(modalities) == ("video", "text")


def is_language_model(model: Any) -> bool:
    """Whether a model goes on with a text."""
    return bool(model.can_generate()) and not is_encoder_decoder(model)


def is_bare_encoder(model: Any) -> bool:
    """Whether a model reads texts and gives no more than its hidden states."""
    return model.base_model is model and is_encoder(model.config)


def is_encoder(config: Any) -> bool:
    """Whether the models of a config read texts and write none: transformers has a head for masks for them, and none
    that goes on with a text is named."""
    import transformers

    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    writes = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    return masked and not writes and not architecture(config).endswith(("ForCausalLM", "LMHeadModel"))


#: What stands for the context of a model whose positions have no end, such as T5 or BLOOM.
NO_END = 2**20


def context_of(config: Any) -> int:
    """The longest text, in tokens, that the positions of a config's models reach, behind a learned prompt where there
    is one; `NO_END` where they have none."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = quirks.first_of(config, quirks.CONTEXT_NAMES)
    if found is None or config.model_type in quirks.WITHOUT_POSITIONS:
        return NO_END
    prompt = getattr(config, "prompt_tokens", 0)  # see `runtime.prompt`
    return found - prompt - (config.pad_token_id + 1 if config.model_type in quirks.BEHIND_PADDING else 0)


@dataclass(frozen=True)
class LabelSet:
    """What a model that labels texts is to tell apart; no names = it is to give a score.

    Attributes:
        tokens: whether each token has a label, not the text as a whole.
    """

    names: tuple[str, ...] | None
    tokens: bool = False

    @property
    def head(self) -> str:
        """What transformers calls the head."""
        return "TokenClassification" if self.tokens else "SequenceClassification"

    def settings(self) -> dict[str, Any]:
        """Settings of a config."""
        if self.names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        ids = dict(enumerate(self.names))
        return {"num_labels": len(ids), "id2label": ids, "label2id": {name: i for i, name in ids.items()}}

    def ids(self, config: Any) -> dict[str, int]:
        """The ids that a model gives its labels, by name; by number, where it calls all LABEL_0, LABEL_1 and so on, as
        transformers does where nobody named them, and none of these names is so."""
        own = {str(label): int(i) for label, i in config.label2id.items()}
        unnamed = all(label == f"LABEL_{i}" for label, i in own.items()) and not own.keys() & set(self.names or ())
        return {str(i): i for i in own.values()} if unnamed else own

    def fit(self, config: Any) -> bool:
        """Whether the model of `config` has a head for them already, in whatever order."""
        if not architecture(config).endswith(f"For{self.head}"):
            return False
        return config.num_labels == 1 if self.names is None else set(self.names) == self.ids(config).keys()


def architecture(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [""])[0])


def class_named(config: Any) -> type | None:
    """The model class that a config names: one of transformers, or one registered with its Auto classes."""
    import transformers

    name = architecture(config)
    found = getattr(_models_beside(config), name, None) or getattr(transformers, name, None)
    registered = (transformers.AutoModel, transformers.AutoModelForVisualQuestionAnswering)
    for auto in registered if found is None else ():
        own = auto._model_mapping.get(type(config), None)
        found = own if getattr(own, "__name__", "") == name else found
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _models_beside(config: Any) -> ModuleType | None:
    """The module of models beside that of a config, as transformers keeps them: then nobody need look through all."""
    home = type(config).__module__
    beside = home.replace(".configuration_", ".modeling_")
    return import_module(beside) if beside != home and find_spec(beside) else None

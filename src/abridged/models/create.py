"""Makes a new model and a tokenizer from a YAML file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from abridged.core.errors import AbridgedError
from abridged.families.kinds import context_of
from abridged.models.load import auto_class, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Ids of `abridged.data.tokenizer.ENCODER_TOKENS` under the names that configs have for them.
ENCODER_SPECIALS = {
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}


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

    from abridged.core.settings import TrainingSettings
    from abridged.core.settings_text import build, nearest, parse_yaml
    from abridged.core.text import read_text
    from abridged.data.text import load_text
    from abridged.data.tokenizer import learn_tokenizer

    try:
        described = parse_yaml(read_text(path), str(path))
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
        raise AbridgedError(f"cannot make a model from {path}: {first_line(error)}") from error
    context = context_of(config)
    tokenizer = learn_tokenizer(load_text(learned_on).train if learned_on else text(), vocab_size, context, encoder)
    if not encoder:
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    training = described.get("training") or {}
    torch.manual_seed(build(TrainingSettings, training, "training", str(path)).seed if seed is None else seed)
    return auto_class(config).from_config(config), tokenizer, training

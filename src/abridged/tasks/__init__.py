"""What models are trained for and measured on: one file per kind of work."""

from pathlib import Path
from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.models import is_encoder_decoder
from abridged.tasks.base import Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Split", "Task", "task_for"]


def task_for(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: str | Path,
    columns: tuple[str, str] | None = None,
) -> Task:
    """What `data` are to `model`: a text to go on with, pairs to learn from, or a text to restore from noise.

    Raises:
        AbridgedError: the data cannot be read, or are not for such a model.
    """
    from abridged.data.pairs import looks_like_pairs

    if not is_encoder_decoder(model):
        if columns is not None:
            raise AbridgedError("columns of a source and a target are for an encoder-decoder, such as BART")
        from abridged.tasks.language_modeling import LanguageModeling

        return LanguageModeling(model, tokenizer, data)
    if looks_like_pairs(data, columns):
        from abridged.tasks.sequence_to_sequence import SequenceToSequence

        return SequenceToSequence(model, tokenizer, data, columns)
    from abridged.tasks.denoising import TextDenoising

    return TextDenoising(model, tokenizer, data)

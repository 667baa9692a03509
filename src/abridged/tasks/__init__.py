"""What models are trained for and measured on: one file per kind of work."""

from pathlib import Path
from typing import TYPE_CHECKING

from abridged.errors import AbridgedError
from abridged.models import finds_answers, is_encoder_decoder, is_language_model, labels_texts
from abridged.tasks.base import Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Split", "Task", "task_for"]


def task_for(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: str | Path,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
) -> Task:
    """What `data` are to `model`: texts to label, a text to go on with, pairs to learn from, or one to restore.

    Args:
        columns: of rows: (source, target) for an encoder-decoder, (text, label) or (text, text, label) to label.
        task: one of GLUE's, for a model that labels texts.

    Raises:
        AbridgedError: the data cannot be read, or are not for such a model.
    """
    from abridged.data.pairs import looks_like_pairs

    if labels_texts(model):
        from abridged.tasks.classification import Classification

        return Classification(model, tokenizer, data, task, columns)
    if finds_answers(model):
        from abridged.tasks.question_answering import QuestionAnswering

        return QuestionAnswering(model, tokenizer, data)
    if task is not None:
        raise AbridgedError(f"a {type(model).__name__} does not label texts, which the task {task} asks for")
    if not is_encoder_decoder(model):
        if columns is not None:
            raise AbridgedError("columns of a source and a target are for an encoder-decoder, such as BART")
        if not is_language_model(model):
            raise AbridgedError(f"a {type(model).__name__} can be packed and loaded, but not trained or measured here")
        from abridged.tasks.language_modeling import LanguageModeling

        return LanguageModeling(model, tokenizer, data)
    pair = two_columns(columns)
    if looks_like_pairs(data, pair):
        from abridged.tasks.sequence_to_sequence import SequenceToSequence

        return SequenceToSequence(model, tokenizer, data, pair)
    from abridged.tasks.denoising import TextDenoising

    return TextDenoising(model, tokenizer, data)


def two_columns(columns: tuple[str, ...] | None) -> tuple[str, str] | None:
    """`columns` of a source and a target.

    Raises:
        AbridgedError: there are not two.
    """
    if columns is None:
        return None
    if len(columns) != 2:
        raise AbridgedError(f"an encoder-decoder learns from two columns, source and target, not from {len(columns)}")
    return columns[0], columns[1]

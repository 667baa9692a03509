"""What models are trained for and measured on: one file per kind of work."""

from typing import TYPE_CHECKING

from abridged.core.errors import AbridgedError
from abridged.data.dataset import Dataset
from abridged.data.opening import RowData
from abridged.families.kinds import (
    fills_masks,
    finds_answers,
    is_encoder_decoder,
    is_language_model,
    labels_texts,
    labels_tokens,
    reads_videos,
)
from abridged.models.sentence import sentence_settings_of
from abridged.tasks.base import Split, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Split", "Task", "task_for"]


def task_for(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", data: Dataset) -> Task:
    """What `data` are to `model`: texts to label, or words of them, sentences to make vectors of, a text to go on with,
    to fill masks in, or to restore, pairs to learn from, videos.

    Raises:
        AbridgedError: the data are not for such a model.
    """
    if reads_videos(model):
        from abridged.tasks.video_questions import VideoQuestions
        from abridged.tasks.video_text import VideoText

        return (VideoQuestions if hasattr(model, "answer") else VideoText)(model, tokenizer, data.as_videos())
    if labels_texts(model):
        from abridged.tasks.classification import Classification

        return Classification(model, tokenizer, data.as_labelled())
    if labels_tokens(model):
        from abridged.tasks.token_classification import TokenClassification

        return TokenClassification(model, tokenizer, data.as_tagged())
    if fills_masks(model):
        from abridged.tasks.masked_language_modeling import MaskedLanguageModeling

        return MaskedLanguageModeling(model, tokenizer, data.as_text())
    if finds_answers(model):
        from abridged.tasks.question_answering import QuestionAnswering

        return QuestionAnswering(model, tokenizer, data.as_questions())
    how = sentence_settings_of(model)
    if how is not None:
        from abridged.tasks.embeddings import Embeddings

        return Embeddings(model, tokenizer, data.as_sentences(), how)
    name = type(model).__name__
    if data.task is not None:
        raise AbridgedError(f"a {name} does not label texts, which the task {data.task} asks for")
    if is_encoder_decoder(model):
        if data.kind == "pairs" or (isinstance(data, RowData) and data.has_pairs):
            from abridged.tasks.sequence_to_sequence import SequenceToSequence

            return SequenceToSequence(model, tokenizer, data.as_pairs())
        from abridged.tasks.denoising import TextDenoising

        return TextDenoising(model, tokenizer, data.as_text())
    if isinstance(data, RowData) and data.columns is not None:
        raise AbridgedError("columns of a source and a target are for an encoder-decoder, such as BART")
    if not is_language_model(model):
        raise AbridgedError(
            f"a {name} gives hidden states, for which there is no task yet: it can be quantised, stored and loaded "
            "through the library, and fine-tuned to label texts (abridged finetune MODEL --data ROWS)"
        )
    from abridged.tasks.language_modeling import LanguageModeling

    return LanguageModeling(model, tokenizer, data.as_text())

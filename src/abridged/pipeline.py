"""The main job: from a teacher, a text and a recipe to a directory that is really small."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def compress(
    model: str | Path,
    recipe: str | Path | dict[str, Any] | Recipe,
    data: str | Path,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
    teacher_cache: str | Path | None = None,
) -> dict[str, Any]:
    """Make a small student of a large teacher.

    Args:
        model: the teacher: a hub name, a directory of any supported model, or `bundled`.
        recipe: the name of a shipped recipe, a YAML file, its content, or a Recipe.
        data: the text to train on: `wikitext-2`, a file or folder, or a `datasets` name.
        output: the directory to make. While the run lasts, its state is in OUTPUT.partial.
        overrides: `key=value` changes to the recipe, such as `stages.0.steps=500`.
        resume: go on with an interrupted run of the same settings; the result is that of an uninterrupted one.
        overwrite: replace what is at `output`.
        seed: of every stage, in place of the recipe's.
        teacher_cache: a folder to keep the teacher's answers in, so that training does without the teacher.

    Returns:
        The account that is also in OUTPUT/abridged.json: recipe, teacher, data, metrics before and after, bytes.

    Raises:
        AbridgedError: bad input or a fault, in one sentence.
    """
    from abridged.training.session import Session

    chosen = Recipe.load(recipe, overrides)
    with Session(model, chosen, data, output, resume, overwrite, seed, teacher_cache) as session:
        for number, stage in session.remaining_stages():
            methods = session.prepare(number, stage)
            session.train(number, stage, methods)
            session.finish(number, methods)
        return session.save()


def evaluate(
    model: str | Path, data: str | Path, *, context: int | None = None, stride: int | None = None
) -> dict[str, Any]:
    """Perplexity of a compressed directory or of any causal language model, on the test part of a text.

    Returns:
        See `abridged.evaluation.perplexity.perplexity`.

    Raises:
        AbridgedError: the model or the text cannot be read, or they do not fit each other.
    """
    from abridged.data.text import load_text
    from abridged.evaluation.perplexity import perplexity

    text = load_text(data)
    loaded, tokenizer = load_model(model)
    return perplexity(loaded, tokenizer, text.to_evaluate, context, stride)


def load_model(model: str | Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A compressed directory (packed) or any causal language model (dense), with its tokenizer.

    Raises:
        AbridgedError: one of them cannot be loaded, or they do not fit each other.
    """
    from abridged.models import load_any, load_tokenizer

    loaded = load_any(model)
    return loaded, load_tokenizer(model, loaded)


def finetune(model: str | Path, data: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:
    """Train a full-precision model on a text: see `abridged.training.finetune.finetune`."""
    from abridged.training import finetune as module

    return module.finetune(model, data, output, **options)

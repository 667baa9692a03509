"""The main job: from a teacher, a text and a recipe to a directory that is really small."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from abridged.evaluation.summaries import SearchSettings


def compress(
    model: str | Path,
    recipe: str | Path | dict[str, Any] | Recipe,
    data: str | Path,
    output: str | Path,
    *,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
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
        data: what to train on: a text (`wikitext-2`, a file or folder, or a `datasets` name), or for an encoder-decoder
            pairs of texts (a .jsonl, .csv, .tsv or .parquet file, a folder of them, or a `datasets` name).
        columns: of rows, which are source and target, or (text, label), or (text, second text, label).
        task: one of GLUE's, whose files `data` has.
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
    with Session(model, chosen, data, output, columns, task, resume, overwrite, seed, teacher_cache) as session:
        for number, stage in session.remaining_stages():
            methods = session.prepare(number, stage)
            session.train(number, stage, methods)
            session.finish(number, methods)
        return session.save()


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    context: int | None = None,
    stride: int | None = None,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Perplexity of a compressed directory or of any language model on the test part of a text; of pairs, that of the
    targets; of a model that labels texts, the metrics of its task.

    Returns:
        See `abridged.evaluation.perplexity.perplexity`, `abridged.evaluation.references.reference_perplexity` and
        `abridged.evaluation.scores.score`.

    Raises:
        AbridgedError: the model or the data cannot be read, or they do not fit each other.
    """
    from abridged.tasks import task_for

    loaded, tokenizer = load_model(model)
    return task_for(loaded, tokenizer, data, columns, task).evaluate(loaded, context, stride)


def evaluate_summaries(
    model: str | Path,
    data: str | Path,
    *,
    columns: tuple[str, str] | None = None,
    limit: int | None = None,
    settings: "SearchSettings | None" = None,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """ROUGE of what an encoder-decoder writes for the sources of pairs, on their test part.

    Args:
        limit: pairs at most, the first ones.
        show: called with how many are done, of how many.

    Returns:
        See `abridged.evaluation.summaries.rouge`; and `pairs`, `sources_cut`, `tokens_per_second`, `settings`.

    Raises:
        AbridgedError: as `evaluate`, or rouge-score is not installed.
    """
    from abridged.data.pairs import load_pairs
    from abridged.evaluation.summaries import SearchSettings, require_rouge, rouge, summarize

    require_rouge()
    pairs = load_pairs(data, columns).to_evaluate[:limit]
    loaded, tokenizer = load_model(model)
    settings = settings or SearchSettings()
    sources = [pair.source for pair in pairs]
    written = summarize(loaded, tokenizer, sources, settings, lambda done: show(done, len(pairs)))
    return {
        **rouge(written.texts, pairs),
        "pairs": len(pairs),
        "sources_cut": written.cut,
        "tokens_per_second": written.tokens / max(written.seconds, 1e-9),
        "settings": settings.arguments(loaded),
    }


def probe(
    model: str | Path,
    data: str | Path,
    *,
    pruned: str | Path | None = None,
    limit: int = 32,
    context: int | None = None,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """What each attention head of a model looks at, on some examples of the data's training part.

    Args:
        pruned: the directory of a pruned student of this very model, whose masks are compared with that.
        limit: examples at most.
        context: tokens of an example; None is all that the model's positions allow.

    Returns:
        `heads`, one for each: `module`, `head`, and see `abridged.evaluation.probe.probe_heads`; with `pruned` also
        `score`, `removed` and `correlation`, see `against_masks`.

    Raises:
        AbridgedError: as `evaluate`, or `pruned` was not pruned.
    """
    from abridged.checkpoint.files import RECORD, checked_directory, read_json, safe_file
    from abridged.errors import AbridgedError
    from abridged.evaluation.probe import against_masks, probe_heads
    from abridged.tasks import task_for
    from abridged.training.settings import TrainingSettings

    masks = None
    if pruned is not None:
        record = read_json(safe_file(checked_directory(pruned), RECORD))
        try:
            masks = dict(record["methods"]["prune"]["heads"])
        except (KeyError, TypeError, ValueError):
            raise AbridgedError(f"{pruned} was not pruned: its {RECORD} says nothing of heads") from None
    loaded, tokenizer = load_model(model)
    examples = task_for(loaded, tokenizer, data, columns, task).examples(TrainingSettings(context=context))
    order = examples.order(0, 4)
    batches = (examples.batch(order[i : min(i + 4, limit)]) for i in range(0, min(limit, len(examples)), 4))
    found = probe_heads(loaded, batches, tokenizer.all_special_ids)
    if masks is not None:
        return against_masks(found, masks)
    heads = [{"module": path, "head": i, **row} for path, rows in found.items() for i, row in enumerate(rows)]
    return {"heads": heads}


def load_model(model: str | Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A compressed directory (packed) or any language model or encoder-decoder (dense), with its tokenizer.

    Raises:
        AbridgedError: one of them cannot be loaded, or they do not fit each other.
    """
    from abridged.models import load_any, load_tokenizer

    loaded = load_any(model)
    return loaded, load_tokenizer(model, loaded)


def finetune(model: str | Path, data: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:
    """Train a full-precision model on a text or on pairs: see `abridged.training.finetune.finetune`."""
    from abridged.training import finetune as module

    return module.finetune(model, data, output, **options)

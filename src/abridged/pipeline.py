"""The main job: from a teacher, a text and a recipe to a directory that is really small."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abridged.core.errors import AbridgedError
from abridged.recipe import PLANNED, Recipe
from abridged.training.job import Job

if TYPE_CHECKING:
    from abridged.core.measurement import Measured
    from abridged.evaluation.summaries import SearchSettings
    from abridged.planning.plan import Plan
    from abridged.planning.sensitivity import Way


def compress(
    model: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe | None,
    data: str | Path,
    output: str | Path,
    **options: Any,
) -> dict[str, Any]:
    """Make a small student of a large teacher.

    Args:
        model, recipe, data, output, options: the fields of `abridged.training.job.Job`, which says what they mean;
            `size`, `columns`, `task`, `overrides`, `resume`, `overwrite`, `seed`, `teacher_cache` and
            `allow_uncompressed` are options. The recipe may be None where there is a size.

    Returns:
        The account that is also in OUTPUT/abridged.json: recipe, teacher, data, metrics before and after, bytes.

    Raises:
        AbridgedError: bad input or a fault, in one sentence; an interrupted run can go on with `resume`.
    """
    return run(Job(kind="compress", model=model, recipe=recipe, data=data, output=output, **options))


def plan(
    model: str | Path,
    size: int | str,
    data: str | Path,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe = PLANNED,
    overrides: Sequence[str] = (),
    way: "Way" = "interpolated",
    tokens: int | None = None,
    speed: str | float | None = None,
    memory: str | int | None = None,
    prune: bool = False,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
) -> "Plan":
    """Choose the bits of each matrix for a size, before any training.

    Args:
        model, data, columns, task: as in `compress`; the training part of the data is read.
        size: of the weights' file: bytes, or such as "40MB" (of 2^20).
        recipe, overrides: how the model is compressed otherwise: quantiser, activations, training.
        way: how sensitivity is found, see `abridged.planning.sensitivity`.
        tokens: of the training data that are read for it, about; 2,048 if None.
        speed: tokens a second that this machine must write at least, one after the other, or such as "2x", of the
            original's.
        memory: bytes, or such as "100MB", that the model may hold on this machine.
        prune: try also to prune heads and inner units first, to several shares of the parameters.

    Raises:
        AbridgedError: bad input; a size that cannot be had, or that needs no compression; limits that no plan keeps to.
    """
    from abridged.planning.make import TOKENS, make_plan

    loaded = Recipe.load(recipe, overrides)
    return make_plan(
        model,
        size,
        data,
        loaded,
        way=way,
        tokens=tokens or TOKENS,
        speed=speed,
        memory=memory,
        prune=prune,
        columns=columns,
        task=task,
    )


def finetune(model: str | Path, data: str | Path, output: str | Path, **options: Any) -> dict[str, Any]:
    """Train `model` on `data`, and write a Hugging Face directory to `output`.

    A language model goes on with a text; an encoder-decoder learns from pairs of texts, or, where `data` is one text,
    to restore it from noise, as BART does; an encoder learns to label texts or words of them, or to fill masks in one.
    Without a `recipe` it learns from hard labels alone. A recipe whose stages have methods compresses what it trains,
    as `compress` does.

    Args:
        model, data, output, options: the fields of `abridged.training.job.Job`, which says what they mean.

    Returns:
        The account that is also in OUTPUT/abridged.json: settings, data, and measurements before and after. Where there
        are several processes, the main one alone measures, writes, and returns more than {}.

    Raises:
        AbridgedError: bad input or a fault, in one sentence; an interrupted run can go on with `resume`.
    """
    return run(Job(kind="finetune", model=model, data=data, output=output, **options))


def run(job: Job) -> dict[str, Any]:
    """Do a job, from a job to a directory.

    Returns:
        The account that is also in OUTPUT/abridged.json; {} in all processes but the main one.

    Raises:
        AbridgedError: bad input or a fault, in one sentence; an interrupted run can go on with `resume`.
    """
    from abridged.planning.make import planned
    from abridged.training.opened import Opened
    from abridged.training.plan import announce
    from abridged.training.publisher import Publisher
    from abridged.training.stages import Stages

    with Opened(planned(job)) as opened:
        announce(opened)
        stages = Stages(opened)
        publisher = Publisher(opened, stages)
        stages.run()
        return publisher.publish()


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    context: int | None = None,
    stride: int | None = None,
    columns: tuple[str, ...] | None = None,
    task: str | None = None,
    limit: int | None = None,
) -> "Measured":
    """Perplexity of a compressed directory or of any language model on the test part of a text; of pairs, that of the
    targets; of a model that labels texts, the metrics of its task.

    Args:
        limit: the most to read: tokens of a text, else pairs, texts or questions.

    Returns:
        See `abridged.evaluation.perplexity.perplexity`, `abridged.evaluation.perplexity.reference_perplexity` and
        `abridged.evaluation.scores.score`.

    Raises:
        AbridgedError: the model or the data cannot be read, or they do not fit each other.
    """
    from abridged.core.names import public_name
    from abridged.core.settings import settings_to_read
    from abridged.core.text import printable
    from abridged.data.opening import open_data
    from abridged.models.load import load_model, load_tokenizer
    from abridged.models.video.load import load_video_model
    from abridged.tasks import task_for
    from abridged.training.plan import announce_reading

    settings_to_read(context)
    opened = open_data(data, columns, task)
    if opened.kind == "videos":
        loaded = load_video_model(model, None, answers=not opened.as_videos().has_captions)
        tokenizer = load_tokenizer(model, loaded)
    else:
        loaded, tokenizer = load_model(model)
    found = task_for(loaded, tokenizer, opened)
    announce_reading(loaded, public_name(model), found.data, context or found.context)
    for note in found.notes:
        print(printable(note), file=sys.stderr)
    return found.evaluate(loaded, context, stride, limit)


def evaluate_vectors(
    model: str | Path,
    data: str | Path,
    *,
    teacher: str | Path | None = None,
    columns: tuple[str, ...] | None = None,
    limit: int | None = None,
) -> "Measured":
    """How well a model of vectors finds: with a `teacher`, the sentences that this one finds nearest to each; else the
    passages that were judged to answer queries.

    Args:
        data: sentences; or rows of a query, a passage and perhaps its relevance, see `abridged.data.judged`.
        limit: sentences, or queries, at most.

    Returns:
        See `abridged.evaluation.sentences.agreement` and `abridged.evaluation.sentences.found_passages`.

    Raises:
        AbridgedError: the models or the data cannot be read, a model makes no vectors, or data do not fit.
    """
    from abridged.core.measurement import Measured
    from abridged.data.dataset import announce
    from abridged.data.judged import read_judged
    from abridged.data.opening import open_data
    from abridged.evaluation.sentences import SentenceEncoder, agreement, found_passages, note_cut
    from abridged.evaluation.vectors import unit
    from abridged.models.load import load_model

    if teacher is None:
        judged = read_judged(Path(data).expanduser(), columns, limit)
        announce(judged.describe())
        encoder = SentenceEncoder(*load_model(model))
        asked = encoder.encode(judged.queries, encoder.query_prompt)
        given = encoder.encode(judged.passages, encoder.passage_prompt)
        note_cut(asked.cut + given.cut, len(judged.queries) + len(judged.passages), encoder.limit)
        found = found_passages(unit(asked.vectors), unit(given.vectors), judged.relevant)
        return Measured(found, queries=len(judged.queries), passages=len(judged.passages))
    opened = open_data(data, columns).as_sentences()
    opened.announce(measured=True)
    sentences = opened.to_evaluate[:limit]
    if len(sentences) < 2:
        raise AbridgedError(f"'{data}' has one sentence, which has no neighbours: give several")
    vectors = []
    for one in (model, teacher):
        encoder = SentenceEncoder(*load_model(one))
        told = encoder.encode(sentences)
        note_cut(told.cut, len(sentences), encoder.limit)
        vectors.append(unit(told.vectors))
    return Measured(agreement(*vectors), sentences=len(sentences))


def evaluate_summaries(
    model: str | Path,
    data: str | Path,
    *,
    columns: tuple[str, ...] | None = None,
    limit: int | None = None,
    settings: "SearchSettings | None" = None,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> "Measured":
    """ROUGE of what an encoder-decoder writes for the sources of pairs, on their test part.

    Args:
        limit: pairs at most, the first ones.
        show: called with how many are done, of how many.

    Returns:
        See `abridged.evaluation.summaries.rouge`; and `pairs`, `sources_cut`, `tokens_per_second`, `settings`.

    Raises:
        AbridgedError: as `evaluate`, or rouge-score is not installed.
    """
    from abridged.data.opening import open_data
    from abridged.evaluation.summaries import SearchSettings, require_rouge, rouge, summarize
    from abridged.models.load import load_model

    require_rouge()
    opened = open_data(data, columns).as_pairs()
    opened.announce(measured=True)
    pairs = opened.to_evaluate[:limit]
    loaded, tokenizer = load_model(model)
    settings = settings or SearchSettings()
    sources = [pair.source for pair in pairs]
    written = summarize(loaded, tokenizer, sources, settings, lambda done: show(done, len(pairs)))
    return rouge(written.texts, pairs).also(
        pairs=len(pairs),
        sources_cut=written.cut,
        tokens_per_second=written.tokens / max(written.seconds, 1e-9),
        settings=settings.arguments(loaded),
    )


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
    from abridged.core.errors import AbridgedError
    from abridged.core.settings import settings_to_read
    from abridged.data.opening import open_data
    from abridged.evaluation.probe import against_masks, probe_heads
    from abridged.models.load import load_model
    from abridged.storage.compressed import heads_in
    from abridged.tasks import task_for

    masks = None
    if pruned is not None:
        record = read_json(safe_file(checked_directory(pruned), RECORD))
        try:
            masks = heads_in(record)
        except (KeyError, TypeError, ValueError):
            raise AbridgedError(f"{pruned} was not pruned: its {RECORD} says nothing of heads") from None
    opened = open_data(data, columns, task)
    loaded, tokenizer = load_model(model)
    read = task_for(loaded, tokenizer, opened)
    read.data.announce()
    examples = read.examples(settings_to_read(context))
    order = examples.order(0, 4)
    batches = (examples.batch(order[i : min(i + 4, limit)]) for i in range(0, min(limit, len(examples)), 4))
    found = probe_heads(loaded, batches, tokenizer.all_special_ids)
    if masks is not None:
        return against_masks(found, masks)
    heads = [{"module": path, "head": i, **row} for path, rows in found.items() for i, row in enumerate(rows)]
    return {"heads": heads}

"""Gathers a report's plain data from the real objects: models, quantised modules, measurements and files."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abridged.core.measurement import Measured, nats_lost
from abridged.core.modes import evaluating
from abridged.core.text import lines_of
from abridged.report.data import (
    HeadPicture,
    MatrixPicture,
    ModelRow,
    PartBytes,
    PlanOutcome,
    ReportData,
    SampleGroup,
    SentencePicture,
    TokenPicture,
    VideoPicture,
)
from abridged.report.pictures import matrix_picture, token_picture
from abridged.report.text import duration, megabytes
from abridged.storage.code_books import CODE_BOOKS
from abridged.storage.compressed import compressed_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from abridged.data.batch import Batch
    from abridged.families import View
    from abridged.recipe import Recipe

TOKENS = 160  #: tokens of the text in the picture: enough to show a cloud, few enough to see single ones


def collect(
    *,
    recipe: "Recipe",
    base_model: str,
    base_model_note: str | None = None,
    data: str,
    directory: str | os.PathLike[str],
    account: Mapping[str, Any],
    teacher_metrics: Measured,
    student_metrics: Measured,
    rounded_metrics: Measured | None = None,
    rounded_name: str = "round to nearest, untrained",
    metrics: Sequence[Mapping[str, Any]] | str | os.PathLike[str] = (),
    matrices: Sequence[MatrixPicture] = (),
    tokens: TokenPicture | None = None,
    samples: Sequence[SampleGroup] = (),
    heads: HeadPicture | None = None,
    videos: VideoPicture | None = None,
    sentences: SentencePicture | None = None,
    auto_class: str = "AutoModelForCausalLM",
    environment: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_memory: Mapping[str, int] | None = None,
) -> ReportData:
    """Everything a report shows of one compression.

    Args:
        recipe: as run, overrides included.
        base_model, data: as the person named them.
        base_model_note: what a person should know of the teacher, in a sentence.
        directory: where the checkpoint will be; only its last name is shown.
        account: what `abridged.checkpoint.inspect.inspect` says of the saved student.
        teacher_metrics, student_metrics, rounded_metrics: what was measured of each on the same data; the last
            of the teacher rounded to the student's bits without training.
        metrics: the lines of metrics.jsonl, or its path.
        matrices: of `picture_weights(student, view)`, taken from the student before it is packed.
        tokens: of `picture_tokens(…)`.
        samples: what the models wrote.
        heads: of `picture_heads(…)`, where heads were pruned.
        videos: of `Task.clips(…)`, where the models read videos.
        sentences: of `Task.sentences(…)`, where they make vectors of sentences.
        auto_class: the class of transformers that loads the student.
        environment: `versions` and `hardware`, as in abridged.json.
        seconds: wall time by name, such as {"training": 372.1, "evaluation": 20.4}.
        peak_memory: bytes by name, such as {"peak memory": 3 * 2**30}.
    """
    stages = [stage.name or f"stage {number}" for number, stage in enumerate(recipe.stages, 1)]
    name = recipe.name
    ratio, bits, size = account["ratio"], account["bits_per_weight"], account["file_bytes"]
    summary = [ModelRow("teacher", "teacher", teacher_metrics.measurements, account["dense_bytes"], 1.0, 32.0)]
    if rounded_metrics is not None:
        # the same grid, the same bytes: only the values differ
        summary.append(ModelRow(rounded_name, "rounded", rounded_metrics.measurements, size, ratio, bits))
    summary.append(ModelRow(f"student, {name}", "student", student_metrics.measurements, size, ratio, bits))
    return ReportData(
        title=f"{name} of {_last(base_model)}",
        recipe=name,
        recipe_description=recipe.description,
        paper=recipe.paper,
        base_model=_last(base_model),
        base_model_note=base_model_note or "",
        data=_last(data),
        date=date.today().isoformat(),
        evaluation=student_metrics.facts,
        summary=summary,
        metrics=read_metrics(metrics),
        stages=stages,
        parts=[PartBytes(name, part["dense_bytes"], part["bytes"]) for name, part in account["parts"].items()],
        plan=plan_outcome(recipe, account, teacher_metrics, student_metrics),
        matrices=list(matrices),
        tokens=tokens,
        samples=list(samples),
        heads=heads,
        videos=videos,
        sentences=sentences,
        auto_class=auto_class,
        modules=[dict(module) for module in account["modules"]],
        directory=Path(directory).name,
        machine=_flat(environment or {}),
        costs={
            **{what: duration(value) for what, value in (seconds or {}).items()},
            **{what: f"{megabytes(value)} MB" for what, value in (peak_memory or {}).items()},
        },
    )


def plan_outcome(
    recipe: "Recipe", account: Mapping[str, Any], teacher_metrics: Measured, student_metrics: Measured
) -> PlanOutcome | None:
    """What a plan expected beside what came of it; None where the recipe comes from no plan. See `collect`."""
    expected = recipe.expected
    if expected is None:
        return None
    return PlanOutcome(
        expected_bytes=expected.file_bytes,
        expected_loss=expected.loss,
        file_bytes=account["file_bytes"],
        loss=nats_lost(teacher_metrics, student_metrics),
        trained=any(stage.trains for stage in recipe.stages),
        way=expected.way,
        tokens=expected.tokens,
        front=expected.front,
    )


def picture_weights(student: "nn.Module", view: "View") -> list[MatrixPicture]:
    """How each quantised matrix of a student in training lies on its grid, in the view's order.

    Q, K and V of a fused matrix are pictures of their own. Matrices that carry no quantiser are left out.
    """
    from abridged.methods.quantization.modules import QuantizedWeight

    pictures = []
    found = dict(student.named_modules())
    for matrix in view.matrices:
        source = getattr(found.get(matrix.name), "source", None)
        if not isinstance(source, QuantizedWeight):
            continue
        stored = source.stored()
        grid = CODE_BOOKS[stored.code_book]
        names = ("Q", "K", "V") if matrix.fused == 3 else tuple(map(str, range(matrix.fused)))
        blocks = [_numpy(t).reshape(matrix.fused, -1) for t in (source.weight, stored.levels, stored.scale)]
        zeros = None if stored.zero is None else _numpy(stored.zero).reshape(matrix.fused, -1)
        for index in range(matrix.fused):
            weight, levels, scale = (block[index] for block in blocks)
            offset = weight.reshape(scale.size, -1).mean(1) if source.settings.centered else None
            if zeros is not None:  # what stands for level 0
                offset = -zeros[index] * scale
            pictures.append(
                matrix_picture(
                    matrix.name,
                    weight.reshape(-1, matrix.columns),
                    levels.reshape(-1, matrix.columns),
                    scale,
                    grid,
                    part=matrix.part,
                    layer=matrix.layer,
                    block=names[index] if matrix.fused > 1 else "",
                    # four levels ±1, ±3 stand for cells that reach out to ±4 (ParetoQ's α)
                    clip=4 * scale if stored.code_book == "quaternary" else None,
                    offset=offset,
                )
            )
    return pictures


def picture_tokens(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], states: Mapping[str, np.ndarray]
) -> TokenPicture:
    """The picture of one text's tokens as several models see them.

    Args:
        token_ids: (tokens,) of the text, as given to `hidden_states`.
        states: (tokens, hidden) arrays of `hidden_states` by model: "teacher" first, then any name for the teacher
            rounded without training, then "student".
    """
    labels = [tokenizer.decode([int(token)]) for token in token_ids]
    roles = {"teacher": "teacher", "student": "student"}
    return token_picture(labels, {name: (roles.get(name, "rounded"), array) for name, array in states.items()})


def picture_heads(found: Mapping[str, Any]) -> HeadPicture | None:
    """The picture of what `abridged.evaluation.probe.against_masks` found; None where it found no heads."""
    heads = found["heads"]
    if not heads:
        return None
    modules = list(dict.fromkeys(head["module"] for head in heads))
    width = 1 + max(head["head"] for head in heads)
    values, removed = np.full((len(modules), width), np.nan), np.zeros((len(modules), width), dtype=bool)
    for head in heads:
        place = modules.index(head["module"]), head["head"]
        values[place], removed[place] = max(head["special"], head["current"]), head["removed"]
    each = dict(found["correlation"])
    return HeadPicture(modules, values, removed, each.pop("either"), each)


def hidden_states(model: "PreTrainedModel", batch: "Batch") -> np.ndarray:
    """Last-layer states of a batch's tokens, (tokens, hidden) FP32, after the final norm; the model's mode is kept.

    Of a model that was cut narrower, 0 where units are gone.
    """
    import torch

    from abridged.objectives.base import outputs_of
    from abridged.objectives.layers import widened

    with torch.inference_mode(), evaluating(model) as device:
        batch = batch.to(device)
        states = outputs_of(model, batch).last_hidden[batch.counted][:TOKENS]
    units = compressed_of(model).hidden_units
    if units is not None:  # units that were pruned away say nothing
        states = widened(states, units, model.config.get_text_config().hidden_size)
    return _numpy(states.float())


def token_ids(batch: "Batch") -> list[int]:
    """The tokens whose states `hidden_states` gives."""
    ids: list[int] = batch.input_ids[batch.counted][:TOKENS].tolist()
    return ids


def read_metrics(metrics: Sequence[Mapping[str, Any]] | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut off while being written is passed over."""
    if not isinstance(metrics, str | os.PathLike):
        return [dict(line) for line in metrics]
    lines = []
    for line in lines_of(Path(metrics).read_text(encoding="utf-8")):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict):
            lines.append(found)
    return lines


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """{"versions": {"torch": "2"}, "cores": 2} as {"torch": "2", "cores": "2"}."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        flat.update(_flat(value) if isinstance(value, Mapping) else {name.replace("_", " "): str(value)})
    return flat


def _last(name: str) -> str:
    """A model or text as others may know it: of a path only the last name, so that no home folder is published."""
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def _numpy(tensor: "Tensor") -> np.ndarray:
    return tensor.detach().cpu().numpy()

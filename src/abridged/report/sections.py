"""The parts of a report, in order. Each looks at the data and gives what its template needs beside them, or None to be
left out.

A new section is a function in `SECTIONS` and a template of the function's name; `title` is its heading.
"""

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from abridged.core.measurement import Measurement
from abridged.report import plots
from abridged.report.curves import Training, read_curves
from abridged.report.data import MatrixPicture, ModelRow, PartBytes, ReportData, role_of
from abridged.report.text import MISSING, megabytes, number, percent, signed_percent, times

Section = dict[str, Any]
_ALL_MATRICES = 32  #: with more than these, histograms are drawn of some layers only
_PARTS = {
    "embedding": "embedding",
    "attention": "attention",
    "ffn": "feed-forward",
    "pooler": "pooler",
    "head": "output head",
    "positions": "positions",
    "norms": "norms",
    "biases": "biases",
    "activation quantizers": "activation scales",
    "headers": "file headers",
}  #: how parts are called, in the order shown; others follow


def _measured(row: ModelRow, teacher: ModelRow) -> list[tuple[str, str]]:
    """The cells of what was measured; of what should be low also how much of the teacher's was lost."""
    cells = []
    for index, before in enumerate(m for m in teacher.measurements if m.title):
        own = row.find(before)
        cells.append((before.column, number(None if own is None else own.value)))
        if before.better == "lower":
            loss = MISSING if row is teacher or own is None else signed_percent(own.loss(before.value))
            cells.append((f"loss {before.unit}" if index else "loss", loss))
    return cells


def summary(data: ReportData) -> Section | None:
    """The table of teacher, rounding without training, and student, and the sentence that says what was lost."""
    if not data.summary:
        return None
    teacher = data.summary[0]
    rows = [
        (
            row,
            [
                *_measured(row, teacher),
                ("MB on disk", megabytes(row.file_bytes)),
                ("ratio", times(row.ratio)),
                ("bits per weight", number(row.bits_per_weight)),
            ],
        )
        for row in data.summary
    ]
    counts = [(key.replace("_", " "), count) for key, count in data.evaluation.items() if isinstance(count, int)]
    return {"title": "Before and after", "rows": rows, "counts": counts}


def by_kind(data: ReportData) -> Section | None:
    """What was measured of each kind of entity alone, one after the other."""
    kinds = [m for m in data.summary[0].measurements if m.part] if data.summary else []
    found = [(kind.part, [row.find(kind) for row in data.summary]) for kind in kinds]
    rows = [(kind, [number(None if m is None else m.value) for m in some]) for kind, some in found]
    return {"title": "F1 of each kind", "rows": rows, "models": data.summary} if rows else None


def what_was_lost(data: ReportData) -> list[str]:
    """Plain sentences about the student, for someone who reads nothing else."""
    if len(data.summary) < 2:
        return []
    teacher, student = data.summary[0], data.summary[-1]
    rounded = next((row for row in data.summary if row.role == "rounded"), None)
    sentences = []
    if student.file_bytes and teacher.file_bytes:
        bits = f", {number(student.bits_per_weight)} bits for each weight" if student.bits_per_weight else ""
        ratio = student.ratio or teacher.file_bytes / student.file_bytes
        sentences.append(
            f"The student takes {megabytes(student.file_bytes)} MB on disk where its teacher takes "
            f"{megabytes(teacher.file_bytes)} MB: {number(ratio, 1)} times less{bits}."
        )
    if data.base_model_note:
        sentences.append(f"{data.base_model_note[0].upper()}{data.base_model_note[1:]}.")
    text = f" on {data.data}" if data.data else ""
    for better in ("higher", "lower"):  # of each the first, which people quote
        own = next((m for m in student.measurements if m.title and m.better == better), None)
        before = own and teacher.find(own)
        if own is not None and before is not None and before.value:
            sentences += _against(own, before, None if rounded is None else rounded.find(own), text)
    return sentences


def _against(own: Measurement, before: Measurement, rounded: Measurement | None, text: str) -> list[str]:
    """What happened to one measurement; of a perplexity, also what that means."""
    loss, gave = own.loss(before.value), f"the teacher’s {number(before.value)}"
    assert loss is not None
    if not math.isfinite(loss):
        return [f"Its {own.title} is not finite: the student does not predict this text at all."]
    if own.better == "higher":
        less = f"{percent(loss)} less" if loss > 0 else f"{percent(-loss)} more"
        return [f"Its {own.title}{text} is {number(own.value)} against {number(before.value)}, {less}."]
    if loss > 0.0005:
        sentence = f"Its {own.title}{text} is {number(own.value)} against {gave}, a loss of {percent(loss)}"
        if own.logarithmic:
            sentence += (
                ": on (geometric) average it gives the right token "
                f"{number(1 / (1 + loss))} times the probability that the teacher gives it"
            )
        sentences = [f"{sentence}."]
    else:
        better = f"{percent(-loss)} better than" if loss < -0.0005 else "the same as"
        sentences = [f"Its {own.title}{text} is {number(own.value)}, {better} {gave}: nothing was lost."]
    cost = rounded.loss(before.value) if rounded is not None and own.logarithmic else None
    if rounded is not None and cost is not None and math.isfinite(cost) and cost > max(loss, 0.0005):
        bridged = 1 - math.log1p(max(loss, 0.0)) / math.log1p(cost)
        sentences.append(
            f"The same bits without training give a {own.title} of {number(rounded.value)}; training won back "
            f"{percent(bridged)} of what rounding lost, counted in bits of surprise for each token."
        )
    return sentences


def training(data: ReportData) -> Section | None:
    """Loss terms, what was measured on the validation part, and learning rates over the steps."""
    found = read_curves(data.metrics)
    if found is None:
        return None
    names = data.stages if len(data.stages) > 1 else []
    bounds = [0.0, *found.starts, found.steps]
    return {
        "title": "Training",
        "figures": _training_figures(found, data),
        "stages": [(name, int(bounds[i]), int(bounds[i + 1])) for i, name in enumerate(names) if i + 1 < len(bounds)],
        "steps": found.steps,
    }


def _training_figures(found: Training, data: ReportData) -> list[tuple[Any, str, str]]:
    figures = []
    if found.watched is not None:
        name = found.watched.name.replace("_", " ")
        kind = next((m for row in data.summary for m in row.measurements if m.name == found.watched.name), None)
        drawn = plots.curves(
            [found.watched],
            f"Validation {name} by step",
            name,
            found.starts,
            logarithmic=bool(kind and kind.logarithmic),
        )
        told = "Measured while training."
        kept = [line for line in data.metrics if line.get("event") == "kept"]
        if kind is not None:
            best, values = ("Lowest", np.nanmin) if kind.better == "lower" else ("Highest", np.nanmax)
            told = told if kind.unit == "%" else f"{kind.unit.capitalize()}, measured while training."
            told = f"{told} {best}: {number(float(values(found.watched.values)))}."
        told += "".join(f" {_kept(line, len(data.stages))}" for line in kept)
        figures.append((drawn, f"Validation {name}.", told))
    if found.losses:
        svg = plots.curves(found.losses, "Loss and its terms by step", "loss", found.starts)
        caption = "Means since the point before."
        if len(found.losses) > 1:
            caption = "The loss is the weighted sum of its terms; the terms are drawn before weighting. " + caption
        figures.append((svg, "Training loss.", caption))
    if found.rates:
        svg = plots.curves(found.rates, "Learning rate by step", "rate", found.starts, logarithmic=False)
        figures.append((svg, "Learning rate.", "It rises during the warm-up, then decays to the stage’s end."))
    return figures


def _kept(line: dict[str, Any], stages: int) -> str:
    """Which of a stage's weights are kept, when it is not the last that are."""
    which = f"Stage {line['stage'] + 1}" if stages > 1 else "The model"
    step = int(line["step"])
    if step == 0:
        return f"{which} keeps the weights from before training: no later ones were better."
    return f"{which} keeps the weights of step {step:,}, the best."


def bytes_by_part(data: ReportData) -> Section | None:
    """Where the bytes were, and where they are."""
    if not data.parts:
        return None
    order = list(_PARTS)
    parts = sorted(data.parts, key=lambda part: order.index(part.name) if part.name in order else len(order))
    whole = PartBytes("all parts", sum(p.dense_bytes for p in parts), sum(p.file_bytes for p in parts))
    largest = max(max(p.dense_bytes, p.file_bytes) for p in parts) or 1
    return {"title": "Where the bytes are", "parts": parts, "whole": whole, "largest": largest, "names": _PARTS}


def tokens(data: ReportData) -> Section | None:
    """The picture behind the method: one text's tokens in the plane of the teacher's principal components."""
    picture = data.tokens
    if picture is None or len(picture.labels) < 3:
        return None
    drawn = [(cloud, plots.token_cloud(picture, cloud)) for cloud in picture.clouds]
    return {"title": "One text as each model sees it", "clouds": drawn}


def weights(data: ReportData) -> Section | None:
    """A histogram of every matrix with its clipping factor and its levels."""
    if not data.matrices:
        return None
    shown = shown_matrices(data.matrices)
    reach = plots.reach_of(shown)
    groups: dict[int | None, list[tuple[MatrixPicture, str, Any]]] = {}
    for matrix in shown:
        panel = (matrix, plots.kind_of(matrix), plots.histogram(matrix, reach))
        groups.setdefault(matrix.layer, []).append(panel)
    return {
        "title": "Weights on their grids",
        "groups": groups,
        "rest": [m for m in data.matrices if not any(m is other for other in shown)],
        "levels": max(len(matrix.levels) for matrix in shown),
    }


def shown_matrices(matrices: list[MatrixPicture]) -> list[MatrixPicture]:
    """All matrices, or those outside the layers and those of evenly spaced layers, where there are too many."""
    if len({matrix.name for matrix in matrices}) <= _ALL_MATRICES:
        return matrices
    outside = {matrix.name for matrix in matrices if matrix.layer is None}
    layers = sorted({matrix.layer for matrix in matrices if matrix.layer is not None})
    if not layers:
        return matrices[:_ALL_MATRICES]
    each = max(1, round(len({m.name for m in matrices if m.layer is not None}) / len(layers)))
    count = int(np.clip((_ALL_MATRICES - len(outside)) // each, 1, len(layers)))
    picked = {layers[round(i)] for i in np.linspace(0, len(layers) - 1, count)}
    return [m for m in matrices if m.layer in picked or (m.layer is None and m.name in list(outside)[:_ALL_MATRICES])]


def gamma(data: ReportData) -> Section | None:
    """γ over modules and layers."""
    values = [matrix.gamma for matrix in data.matrices if matrix.gamma is not None]
    if len(values) < 2 or all(matrix.layer is None for matrix in data.matrices):
        return None
    return {"title": "Clipping factors over the layers", "svg": plots.gammas(data.matrices), "values": values}


def plan(data: ReportData) -> Section | None:
    """What a plan expected of the size and of the loss, and what came of them."""
    found = data.plan
    if found is None:
        return None
    front = found.front or [(found.expected_bytes, found.expected_loss)]
    measured = None if found.loss is None else (found.file_bytes, found.loss)
    svg = plots.front(front, (found.expected_bytes, found.expected_loss), measured)
    return {"title": "Planned, and what came of it", "svg": svg}


def factors(data: ReportData) -> Section | None:
    """How near the Kronecker factors came to each matrix before training."""
    found = [module for module in data.modules if module.get("error") is not None]
    if not found:
        return None
    points = [(*plots.within_layer(module["name"]), module["error"]) for module in found]
    worst = max(found, key=lambda module: module["error"])
    return {
        "title": "Matrices as Kronecker products",
        "svg": plots.errors(points),
        "count": len(found),
        "worst": worst["name"],
        "error": worst["error"],
    }


def heads(data: ReportData) -> Section | None:
    """What the teacher's heads look at, and which of them were pruned."""
    return None if data.heads is None else {"title": "Heads that were pruned", "svg": plots.heads(data.heads)}


def videos(data: ReportData) -> Section | None:
    """Frames of clips, similarities of the student against the teacher's, and what is mistaken for its opposite."""
    picture = data.videos
    if picture is None:
        return None
    strips = [
        {
            "caption": strip.caption,
            "frames": [f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}" for frame in strip.frames],
            "cosines": strip.cosines,
        }
        for strip in picture.strips
    ]
    teacher, *others = picture.similarities
    drawn = [(name, role_of(name), plots.similarities(picture, teacher, name)) for name in others]
    return {
        "title": "Clips as the models see them",
        "strips": strips,
        "models": {name: role_of(name) for name in picture.similarities},
        "drawn": drawn,
        "agreement": {name: plots.agreement(picture, teacher, name) for name in others},
    }


def sentences(data: ReportData) -> Section | None:
    """Sentences in the teacher's plane, similarities against the teacher's, neighbours that are kept, worst pairs."""
    picture = data.sentences
    if picture is None:
        return None
    teacher, *others = picture.similarities
    return {
        "title": "Sentences as the models see them",
        "clouds": [(cloud, plots.token_cloud(picture.points, cloud, "Sentences")) for cloud in picture.points.clouds],
        "models": {name: role_of(name) for name in picture.similarities},
        "drawn": [(name, role_of(name), plots.similarities(picture, teacher, name, "sentences")) for name in others],
        "agreement": {name: plots.agreement(picture, teacher, name) for name in others},
        "kept": plots.kept(picture.kept, picture.neighbours) if others else None,
        "count": max((len(some) for some in picture.kept.values()), default=0),
    }


def samples(data: ReportData) -> Section | None:
    """The same prompts continued, texts labelled, or documents summed up, by each model."""
    if not data.samples:
        return None
    titles = {"Prompt": "The same prompt, continued", "Text": "The same texts, as each model reads them"}
    return {"title": titles.get(data.samples[0].label, "The same documents, summed up")}


def modules(data: ReportData) -> Section | None:
    """Every stored module: shape, bits, scales, bytes."""
    return {"title": "Modules"} if data.modules else None


def loading(data: ReportData) -> Section | None:
    """How to use the checkpoint."""
    return {"title": "How to load it"} if data.directory else None


def setting(data: ReportData) -> Section | None:
    """Machine, versions, time and memory."""
    return {"title": "How it was made"} if data.machine or data.costs else None


SECTIONS: list[Callable[[ReportData], Section | None]] = [
    summary, by_kind, plan, bytes_by_part, training, tokens, factors, weights, gamma, heads, videos, sentences, samples,
    loading, modules, setting,
]  # fmt: skip

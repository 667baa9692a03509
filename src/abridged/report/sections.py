"""The parts of a report, in order. Each looks at the data and gives what its template needs, or None to be left out.

A new section is a function in `SECTIONS` and a template of the function's name; `title` is its heading.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from abridged.report import plots
from abridged.report.curves import Training, read_curves
from abridged.report.data import MatrixPicture, ModelRow, ReportData
from abridged.report.text import (
    MISSING,
    THIN,
    megabytes,
    number,
    percent,
    readable,
    signed_percent,
    significant,
)

Section = dict[str, Any]
_ALL_MATRICES = 32  #: with more than these, histograms are drawn of some layers only
_SHOWN = 600  #: characters of a document
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


def loss_of(row: ModelRow, teacher: ModelRow, per: str = "perplexity") -> float | None:
    """Relative rise of a perplexity over the teacher's: 0.195 is a loss of 19.5 %."""
    own, reference = getattr(row, per), getattr(teacher, per)
    return None if own is None or not reference else own / reference - 1


def _loss_cell(row: ModelRow, teacher: ModelRow, per: str) -> str:
    return MISSING if row is teacher else signed_percent(loss_of(row, teacher, per))


def _perplexity_cells(row: ModelRow, teacher: ModelRow) -> list[tuple[str, str]]:
    return [
        ("perplexity per token", number(row.perplexity)),
        ("loss", _loss_cell(row, teacher, "perplexity")),
        ("perplexity per word", number(row.word_perplexity)),
        ("loss per word", _loss_cell(row, teacher, "word_perplexity")),
    ]


def summary(data: ReportData) -> Section | None:
    """The table of teacher, rounding without training, and student, and the sentence that says what was lost."""
    if not data.summary:
        return None
    teacher = data.summary[0]
    rows = [
        {
            "name": row.name,
            "role": row.role,
            "cells": [
                *(_perplexity_cells(row, teacher) if teacher.perplexity is not None else ()),
                *((name, number(row.scores.get(name))) for name in teacher.scores),
                ("MB on disk", megabytes(row.file_bytes)),
                ("ratio", MISSING if row.ratio is None else f"{number(row.ratio, 1)}{THIN}×"),
                ("bits per weight", number(row.bits_per_weight)),
            ],
        }
        for row in data.summary
    ]
    return {
        "title": "Before and after",
        "rows": rows,
        "columns": [name for name, _ in rows[0]["cells"]],
        "evaluation": data.evaluation,
    }


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
    text = f" on {data.data}" if data.data else ""
    for name, own in student.scores.items():
        before = teacher.scores.get(name)
        if before:
            change = own / before - 1
            less = f"{percent(-change)} less" if change < 0 else f"{percent(change)} more"
            sentences.append(f"Its {name}{text} is {number(own)} against {number(before)}, {less}.")
            break  # the first is the one that people quote
    loss = loss_of(student, teacher)
    if loss is None or student.perplexity is None or teacher.perplexity is None:
        return sentences
    if not math.isfinite(loss):
        return [*sentences, "Its perplexity is not finite: the student does not predict this text at all."]
    gave = f"the teacher’s {number(teacher.perplexity)}"
    if loss > 0.0005:
        sentences.append(
            f"Its perplexity{text} is {number(student.perplexity)} against {gave}, a loss of {percent(loss)}: "
            f"on (geometric) average it gives the token that really comes next "
            f"{number(1 / (1 + loss))} times the probability that the teacher gives it."
        )
    else:
        better = f"{percent(-loss)} better than" if loss < -0.0005 else "the same as"
        sentences.append(f"Its perplexity{text} is {number(student.perplexity)}, {better} {gave}: nothing was lost.")
    cost = None if rounded is None else loss_of(rounded, teacher)
    if rounded is not None and cost is not None and math.isfinite(cost) and cost > max(loss, 0.0005):
        bridged = 1 - math.log1p(max(loss, 0.0)) / math.log1p(cost)
        sentences.append(
            f"The same bits without training give a perplexity of {number(rounded.perplexity)}; training won back "
            f"{percent(bridged)} of what rounding lost, counted in bits of surprise for each token."
        )
    return sentences


def training(data: ReportData) -> Section | None:
    """Loss terms, validation perplexity and learning rates over the steps."""
    found = read_curves(data.metrics)
    if found is None:
        return None
    names = data.stages if len(data.stages) > 1 else []
    bounds = [0.0, *found.starts, found.steps]
    return {
        "title": "Training",
        "figures": _training_figures(found),
        "stages": [(name, int(bounds[i]), int(bounds[i + 1])) for i, name in enumerate(names) if i + 1 < len(bounds)],
        "steps": found.steps,
    }


def _training_figures(found: Training) -> list[tuple[Any, str, str]]:
    figures = []
    if found.watched is not None and found.watched.name == "perplexity":
        svg = plots.curves([found.watched], "Validation perplexity by step", "perplexity", found.starts)
        best = np.nanmin(found.watched.values)
        figures.append(
            (svg, "Validation perplexity.", f"Per token, measured while training. Lowest: {number(float(best))}.")
        )
    elif found.watched is not None:
        svg = plots.curves([found.watched], "Validation score by step", "score", found.starts, logarithmic=False)
        best = np.nanmax(found.watched.values)
        figures.append((svg, "Validation score.", f"Measured while training. Highest: {number(float(best))}."))
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


def bytes_by_part(data: ReportData) -> Section | None:
    """Where the bytes were, and where they are."""
    if not data.parts:
        return None
    dense, small = sum(p.dense_bytes for p in data.parts), sum(p.file_bytes for p in data.parts)
    largest = max(max(p.dense_bytes, p.file_bytes) for p in data.parts) or 1
    order = list(_PARTS)
    rows = [
        {
            "name": _PARTS.get(part.name, part.name),
            "dense": megabytes(part.dense_bytes),
            "file": megabytes(part.file_bytes),
            "ratio": f"{number(part.dense_bytes / part.file_bytes, 1)}{THIN}×"
            if part.file_bytes and part.dense_bytes
            else MISSING,
            "share": percent(part.file_bytes / small, 0) if small else MISSING,
            "dense_width": round(100 * part.dense_bytes / largest, 2),
            "file_width": round(100 * part.file_bytes / largest, 2),
        }
        for part in sorted(data.parts, key=lambda part: order.index(part.name) if part.name in order else len(order))
    ]
    total = {
        "dense": megabytes(dense),
        "file": megabytes(small),
        "ratio": _times(dense, small),
    }
    return {"title": "Where the bytes are", "rows": rows, "total": total}


def _times(before: int, after: int) -> str:
    return f"{number(before / after, 1)}{THIN}×" if before and after else MISSING


def tokens(data: ReportData) -> Section | None:
    """The picture behind the method: one text's tokens in the plane of the teacher's principal components."""
    picture = data.tokens
    if picture is None or len(picture.labels) < 3:
        return None
    panels = [
        {
            "svg": plots.token_cloud(picture, cloud),
            "name": cloud.name,
            "role": cloud.role,
            "to_teacher": number(cloud.to_teacher),
            "among": number(cloud.among),
            "found": percent(cloud.found, 0),
        }
        for cloud in picture.clouds
    ]
    return {
        "title": "One text as each model sees it",
        "panels": panels,
        "count": len(picture.labels),
        "explained": percent(picture.explained, 0),
    }


def weights(data: ReportData) -> Section | None:
    """A histogram of every matrix with its clipping factor and its levels."""
    if not data.matrices:
        return None
    shown = shown_matrices(data.matrices)
    reach = plots.reach_of(shown)
    groups: dict[str, list[dict[str, Any]]] = {}
    for matrix in shown:
        panel = {
            "svg": plots.histogram(matrix, reach),
            "name": plots.kind_of(matrix),
            **plots.describe_gamma(matrix),
            "clipped": percent(matrix.clipped),
            "zeros": percent(matrix.zeros, 0) if matrix.zeros is not None else "",
        }
        groups.setdefault("" if matrix.layer is None else f"layer {matrix.layer}", []).append(panel)
    rest = [m for m in data.matrices if not any(m is other for other in shown)]
    return {
        "title": "Weights on their grids",
        "groups": groups,
        "rest": [
            {
                "name": f"{matrix.name} {matrix.block}".strip(),
                "mean_abs": significant(matrix.mean_abs),
                "clipped": percent(matrix.clipped),
                "zeros": percent(matrix.zeros, 0),
                **plots.describe_gamma(matrix),
            }
            for matrix in rest
        ],
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
    return {
        "title": "Clipping factors over the layers",
        "svg": plots.gammas(data.matrices),
        "low": significant(min(values)),
        "high": significant(max(values)),
    }


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
        "error": percent(worst["error"], 0),
    }


def heads(data: ReportData) -> Section | None:
    """What the teacher's heads look at, and which of them were pruned."""
    if data.heads is None:
        return None
    picture = data.heads
    return {
        "title": "Heads that were pruned",
        "svg": plots.heads(picture),
        "removed": int(picture.removed.sum()),
        "all": int((~np.isnan(picture.values)).sum()),
        "most": percent(float(np.nanmax(picture.values))),
        "correlation": None if picture.correlation is None else f"{picture.correlation:+.2f}",
        "first": picture.correlation is not None and picture.correlation < 0,
        "each": ", ".join(f"{name} {value:+.2f}" for name, value in picture.each.items() if value is not None),
    }


def samples(data: ReportData) -> Section | None:
    """The same prompts continued, or documents summed up, by each model."""
    if not data.samples:
        return None
    groups = [
        {
            "label": group.label,
            "prompt": readable(_shortened(group.prompt)),
            "samples": [{"name": s.name, "role": s.role, "text": readable(s.text.strip())} for s in group.samples],
        }
        for group in data.samples
    ]
    continued = data.samples[0].label == "Prompt"
    return {"title": "The same prompt, continued" if continued else "The same documents, summed up", "groups": groups}


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN].rsplit(" ", 1)[0] + " …"


def modules(data: ReportData) -> Section | None:
    """Every stored module: shape, bits, scales, bytes."""
    if not data.modules:
        return None
    rows = [
        {
            "name": module["name"],
            "cells": [
                ("shape", " × ".join(f"{size:,}" for size in module["shape"])),
                ("stored as", module["stored"]),
                ("scales", module.get("scales", MISSING)),
                ("bytes", f"{module['bytes']:,}"),
            ],
        }
        for module in data.modules
    ]
    return {"title": "Modules", "rows": rows, "columns": [name for name, _ in rows[0]["cells"]]}


def loading(data: ReportData) -> Section | None:
    """How to use the checkpoint."""
    if not data.directory:
        return None
    return {"title": "How to load it", "directory": data.directory, "auto_class": data.auto_class}


def setting(data: ReportData) -> Section | None:
    """Machine, versions, time and memory."""
    if not data.machine and not data.costs:
        return None
    return {"title": "How it was made", "machine": data.machine, "costs": data.costs}


SECTIONS: list[Callable[[ReportData], Section | None]] = [
    summary, bytes_by_part, training, tokens, factors, weights, gamma, heads, samples, loading, modules, setting,
]  # fmt: skip

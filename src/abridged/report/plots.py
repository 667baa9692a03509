"""The figures of a report. Each takes plain data and gives inline SVG, or several for small multiples."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from abridged.report.curves import Curve
from abridged.report.data import (
    MB,
    HeadPicture,
    MatrixPicture,
    SentencePicture,
    TokenCloud,
    TokenPicture,
    VideoPicture,
    role_of,
)
from abridged.report.figure import COLOURS, DASHES, MARKERS, SERIES, Drawing
from abridged.report.text import name_of, visible

_LABELS = 14  #: tokens named in a cloud, at most


def curves(
    lines: Sequence[Curve],
    label: str,
    y_label: str,
    stages: Sequence[float] = (),
    logarithmic: bool = True,
) -> Markup:
    """Curves over the training step.

    Args:
        stages: steps at which a new stage begins, marked by a vertical rule.
        logarithmic: take the logarithm of values that span more than a factor of eight.
    """
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values)]
    logarithmic = logarithmic and values.size > 0 and values.min() > 0 and values.max() > 8 * values.min()
    legend_rows = (len(lines) + 1) // 2
    with Drawing(3.6, 2.1 + 0.15 * legend_rows, label) as drawing:
        axes = drawing.axes
        for index, line in enumerate(lines):
            axes.plot(
                line.steps,
                line.values,
                color=COLOURS["student"] if len(lines) == 1 else SERIES[index % len(SERIES)],
                linestyle=DASHES[index % len(DASHES)],
                marker="o" if len(line.steps) <= 30 else "",
                markersize=2.5,
                label=name_of(line.name, 22),
            )
        for step in stages:
            axes.axvline(step, color=COLOURS["muted"], linewidth=0.6, linestyle=":")
        if logarithmic:
            _logarithmic(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y")
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=2.2)
    return drawing.svg


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value >= 1e-3 else f"{value:.0e}"))


def histogram(matrix: MatrixPicture, reach: float) -> Markup:
    """Weights of one matrix in units of α, with ±α and the levels of the grid; `reach` is the axis' end."""
    label = f"Histogram of the weights of {name_of(matrix.name, 80)}"
    with Drawing(1.6, 0.95, label, margins=(0.02, 0.22, 0.02, 0.06)) as drawing:
        axes = drawing.axes
        centres = (matrix.edges[:-1] + matrix.edges[1:]) / 2
        counts = matrix.counts.copy()
        shown = np.flatnonzero(np.abs(centres) <= reach)
        counts[shown[0]] += counts[: shown[0]].sum()  # what lies beyond the axis stands at its end
        counts[shown[-1]] += counts[shown[-1] + 1 :].sum()
        inside = np.abs(centres) < 1
        for kept, colour in ((inside, "student"), (~inside, "c4")):
            heights = np.where(kept, counts, 0)
            axes.stairs(heights, matrix.edges, fill=True, color=COLOURS[colour], alpha=0.55, linewidth=0)
        top = max(float(counts[shown].max()), 1e-9) * 1.08
        if len(matrix.levels) <= 16:
            axes.vlines(matrix.levels, 0, top, color=COLOURS["ink"], linewidth=0.8)
            axes.plot(
                matrix.levels,
                np.full(len(matrix.levels), top),
                color=COLOURS["ink"],
                marker="v",
                markersize=3.5,
                linestyle="",
                clip_on=False,
            )
        axes.vlines((-1, 1), 0, top, color=COLOURS["c4"], linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(-reach, reach)
        axes.set_ylim(0, top)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        ticks = [tick for tick in (-2, -1, 0, 1, 2) if abs(tick) <= reach]
        axes.set_xticks(ticks, [{0: "0", 1: "α", -1: "−α"}.get(t, f"{t}α".replace("-", "−")) for t in ticks])
    return drawing.svg


def reach_of(matrices: Sequence[MatrixPicture]) -> float:
    """The axis' end, in α, that shows all but the last hundredth of the widest matrix's weights."""
    widest = 1.0
    for matrix in matrices:
        centres = np.abs((matrix.edges[:-1] + matrix.edges[1:]) / 2)
        order = np.argsort(centres)
        within = np.cumsum(matrix.counts[order])
        widest = max(widest, float(centres[order][np.searchsorted(within, 0.99 * within[-1]).clip(max=len(order) - 1)]))
    return next((reach for reach in (1.25, 1.75, 2.25) if widest <= reach), 3.25)


def gammas(matrices: Sequence[MatrixPicture]) -> Markup:
    """γ over the layers, one line for each kind of module."""
    points = [(m.name if m.layer is None else kind_of(m), m.layer, m.gamma) for m in matrices if m.gamma is not None]
    columns = 3 if max(len(name_of(name, 20)) for name, _, _ in points) <= 15 else 2
    return _over_layers("γ of every compressed matrix over the layers", "γ", points, columns)


def _over_layers(
    title: str,
    quantity: str,
    points: Sequence[tuple[str, int | None, float]],
    columns: int,
    bottom: float | None = None,
) -> Markup:
    """A line for each kind of (kind, layer, value), a dashed one across for each value outside the layers."""
    series: dict[str, list[tuple[int, float]]] = {}
    for name, layer, value in points:
        if layer is not None:
            series.setdefault(name, []).append((layer, value))
    outside = {name: value for name, layer, value in points if layer is None}
    height = 2.6 + 0.15 * math.ceil((len(series) + len(outside)) / columns)
    with Drawing(4.6, height, title) as drawing:
        axes = drawing.axes
        for index, (name, own) in enumerate(series.items()):
            layers, values = zip(*sorted(own), strict=True)
            axes.plot(
                layers,
                values,
                color=SERIES[index % len(SERIES)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1,
                label=name_of(name, 20),
            )
        for name, value in outside.items():
            label = name_of(name, 20)
            axes.axhline(value, color=COLOURS["ink"], linewidth=1, linestyle=(0, (4, 2)), label=label)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        if bottom is not None:
            axes.set_ylim(bottom, None)
        axes.grid(axis="y")
        axes.set_xlabel("layer")
        axes.set_ylabel(quantity)
        axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, handlelength=2.2)
    return drawing.svg


def errors(points: Sequence[tuple[str, int | None, float]]) -> Markup:
    """The error of approximation (kind of module, layer or None, error) over the layers, a line for each kind."""
    return _over_layers("Error of every factored matrix", "‖W − ΣA⊗B‖ / ‖W‖", points, columns=2, bottom=0)


def heads(picture: HeadPicture) -> Markup:
    """A heat map of attention heads: the darker, the more of its attention a head spends; × marks those removed."""
    rows, columns = picture.values.shape
    with Drawing(1.6 + 0.3 * columns, 0.7 + 0.24 * rows, "attention of every head, and which were removed") as drawing:
        axes = drawing.axes
        top = max(float(np.nanmax(picture.values)), 1e-9)
        for row in range(rows):
            for column in range(columns):
                if np.isnan(picture.values[row, column]):
                    continue
                share = float(picture.values[row, column]) / top
                box = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, linewidth=0.4, edgecolor=COLOURS["rule"])
                box.set_facecolor(COLOURS["c1"])
                box.set_alpha(0.05 + 0.9 * share)
                axes.add_patch(box)
                if picture.removed[row, column]:
                    axes.plot(column, row, marker="x", markersize=6, color=COLOURS["ink"], markeredgewidth=1.2)
        axes.set_xlim(-0.6, columns - 0.4)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xticks(range(columns))
        axes.set_yticks(range(rows), [name_of(module, 24) for module in picture.modules])
        axes.set_xlabel("head")
    return drawing.svg


def front(
    points: Sequence[tuple[int, float]], planned: tuple[int, float], measured: tuple[int, float] | None = None
) -> Markup:
    """The loss (nats a token) that is expected at each size (bytes), what was planned, and what was measured."""
    with Drawing(4.6, 2.8, "Expected loss at each size, and the one that was planned") as drawing:
        axes = drawing.axes
        sizes, losses = zip(*points, strict=True)
        axes.plot(
            [size / MB for size in sizes], losses, color=COLOURS["rounded"], marker="o", markersize=3, label="expected"
        )
        axes.plot(
            planned[0] / MB, planned[1], color=COLOURS["ink"], marker="D", markersize=6, linestyle="", label="planned"
        )
        if measured is not None and math.isfinite(measured[1]) and measured[1] > 0:
            axes.plot(
                measured[0] / MB,
                measured[1],
                color=COLOURS["student"],
                marker="s",
                markersize=6,
                linestyle="",
                label="measured",
            )
        axes.set_yscale("log")
        axes.grid(axis="y")
        axes.set_xlabel("MB of the weights’ file")
        axes.set_ylabel("loss, nats a token")
        axes.legend()
    return drawing.svg


def similarities(
    picture: VideoPicture | SentencePicture, teacher: str, other: str, what: str = "texts and clips"
) -> Markup:
    """Cosines, a model's against the teacher's; of texts with their own clips, or of neighbours, stand out."""
    x, y = picture.similarities[teacher], picture.similarities[other]
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    room = 0.03 * (high - low or 1.0)
    with Drawing(3.5, 3.5, f"Cosines of {what}, {other} against {teacher}") as drawing:
        axes = drawing.axes
        axes.plot([low, high], [low, high], color=COLOURS["rule"], linewidth=0.8)
        for own, colour, size in ((False, COLOURS["muted"], 2.0), (True, COLOURS[role_of(other)], 4.0)):
            chosen = picture.own == own
            axes.plot(
                x[chosen], y[chosen], color=colour, marker="o", markersize=size, markeredgewidth=0, linestyle="",
                alpha=0.85 if own else 0.4,
            )  # fmt: skip
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(low - room, high + room)
        axes.set_aspect("equal")
        axes.set_xlabel(teacher)
        axes.set_ylabel(other)
    return drawing.svg


def agreement(picture: VideoPicture | SentencePicture, teacher: str, other: str) -> float | None:
    """Correlation of a model's cosines with the teacher's; None where one of them does not vary."""
    x, y = (picture.similarities[name].ravel() for name in (teacher, other))
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else None


def kept(counts: Mapping[str, np.ndarray], most: int) -> Markup:
    """How many of their `most` nearest each model keeps, as the share of sentences: bars side by side."""
    with Drawing(4.6, 2.4, "Neighbours that are kept") as drawing:
        axes = drawing.axes
        width = 0.8 / len(counts)
        for number, (name, some) in enumerate(counts.items()):
            shares = np.bincount(some, minlength=most + 1) / max(1, len(some))
            places = np.arange(most + 1) + (number - (len(counts) - 1) / 2) * width
            axes.bar(places, 100 * shares, width, color=COLOURS[role_of(name)], label=name, linewidth=0)
        axes.set_xticks(range(most + 1))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"neighbours kept, of {most}")
        axes.set_ylabel("% of sentences")
        axes.legend(loc="upper left")
    return drawing.svg


def kind_of(matrix: MatrixPicture) -> str:
    """What a matrix is within its layer: 'attn.c_attn Q' of 'transformer.h.3.attn.c_attn'."""
    return f"{within_layer(matrix.name)[0]} {matrix.block}".strip()


def within_layer(path: str) -> tuple[str, int | None]:
    """A module's path within its layer, and which layer that is: 'transformer.h.3.mlp.c_fc' -> ('mlp.c_fc', 3)."""
    pieces = path.split(".")
    digits = [index for index, piece in enumerate(pieces) if piece.isdigit()]
    return (".".join(pieces[digits[-1] + 1 :]), int(pieces[digits[-1]])) if digits else (path, None)


def token_cloud(picture: TokenPicture, cloud: TokenCloud, what: str = "Tokens") -> Markup:
    """One model's tokens, or sentences, in the plane of the teacher's two principal components, all at one scale.

    A hairline leads from each token to where the teacher has it.
    """
    teacher = picture.clouds[0].points
    everything = np.concatenate([other.points for other in picture.clouds])
    low, high = everything.min(0), everything.max(0)
    centre, half = (low + high) / 2, 0.56 * float((high - low).max() or 1.0)
    with Drawing(3.5, 3.5, f"{what} as {cloud.name} sees them", margins=(0.02, 0.02, 0.02, 0.02)) as drawing:
        axes = drawing.axes
        axes.set_xlim(centre[0] - half, centre[0] + half)
        axes.set_ylim(centre[1] - half, centre[1] + half)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in ("left", "bottom", "right", "top"):
            axes.spines[side].set_visible(True)
            axes.spines[side].set_color(COLOURS["rule"])
        if cloud is not picture.clouds[0]:
            stacked = np.stack([teacher, cloud.points, np.full_like(teacher, np.nan)], axis=1).reshape(-1, 2)
            axes.plot(stacked[:, 0], stacked[:, 1], color=COLOURS["muted"], linewidth=0.4, alpha=0.45)
        axes.plot(
            cloud.points[:, 0],
            cloud.points[:, 1],
            color=COLOURS[cloud.role],
            marker="o",
            markersize=3.2,
            markeredgewidth=0,
            linestyle="",
            alpha=0.75,
        )
        right = float(centre[0]) + half
        for index, (x, y, side) in _label_places(picture.labels, teacher, cloud.points, half, right).items():
            axes.text(
                x,
                y,
                visible(picture.labels[index], 12),
                fontsize=7.5,
                ha=side,
                va="center",
                gid=f"label{index}",  # the style sheet gives these letters a rim of the paper's colour
            )
    return drawing.svg


def _label_places(
    labels: Sequence[str], teacher: np.ndarray, points: np.ndarray, half: float, right: float
) -> dict[int, tuple[float, float, str]]:
    """Where to write which tokens' labels: spread over the teacher's cloud, the same tokens for every model.

    Tokens are chosen farthest first in the teacher's plane, one for each text; a label that would cover another is
    left out of that panel.
    """
    chosen: list[int] = []
    distance = np.linalg.norm(teacher - teacher.mean(0), axis=1)
    seen: set[str] = set()
    while len(chosen) < min(2 * _LABELS, len(labels)) and distance.max() > 0:
        index = int(distance.argmax())
        distance = np.minimum(distance, np.linalg.norm(teacher - teacher[index], axis=1))
        distance[index] = 0
        text = visible(labels[index], 12)
        if text not in seen and any(character.isalnum() for character in text):
            seen.add(text)
            chosen.append(index)
    places: dict[int, tuple[float, float, str]] = {}
    boxes: list[tuple[float, float, float, float]] = []
    height = 2 * half * 0.045
    for index in chosen:
        x, y = points[index]
        width = 2 * half * 0.023 * (len(visible(labels[index], 12)) + 1)
        gap = 0.025 * half
        flipped = float(x) + gap + width > right
        left = float(x) - gap - width if flipped else float(x) + gap
        box = (left, float(y) - height / 2, left + width, float(y) + height / 2)
        if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes):
            boxes.append(box)
            places[index] = (float(x) - gap, float(y), "right") if flipped else (left, float(y), "left")
        if len(places) == _LABELS:
            break
    return places

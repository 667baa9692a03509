"""Arrays made small enough to draw: histograms of weights, projections of hidden states. numpy only."""

from collections.abc import Mapping, Sequence

import numpy as np

from abridged.report.data import MatrixPicture, TokenCloud, TokenPicture

_SAMPLE = 200_000  #: weights counted of one matrix; the share of a bin is then known to about 0.1 %
_REACH, _BINS = 3.25, 130


def matrix_picture(
    name: str,
    weight: np.ndarray,
    levels: np.ndarray,
    scale: np.ndarray,
    grid: Sequence[int],
    *,
    part: str = "",
    layer: int | None = None,
    block: str = "",
    gamma: float | None = None,
    clip: np.ndarray | None = None,
    offset: np.ndarray | None = None,
) -> MatrixPicture:
    """How a matrix lies on its grid.

    Args:
        weight: (rows, columns) master weights.
        levels: (rows, columns) integer levels; `levels * scale` are the quantised weights.
        scale: (scales,) step of the grid, each for the same number of consecutive weights.
        grid: the integer levels there are.
        gamma: the learned γ, where there is one; else the median of α / mean |w| stands for it.
        clip: (scales,) α; the outermost level where None.
        offset: (scales,) what the quantiser takes off the weights first (the mean, in 1-bit grids).
    """
    count = scale.size
    flat = weight.reshape(count, -1)
    step = np.asarray(scale, np.float64).reshape(-1)
    alpha = step * max(abs(level) for level in grid) if clip is None else np.asarray(clip, np.float64).reshape(-1)
    generator = np.random.default_rng(0)
    picked = np.arange(flat.size) if flat.size <= _SAMPLE else generator.integers(0, flat.size, _SAMPLE)
    line = picked // flat.shape[1]
    values = flat.reshape(-1)[picked].astype(np.float64)
    centred = values if offset is None else values - np.asarray(offset, np.float64).reshape(-1)[line]
    units = centred / np.maximum(alpha[line], 1e-30)
    edges = np.linspace(-_REACH, _REACH, _BINS + 1)
    middle = edges[1] - edges[0]
    counts, _ = np.histogram(np.clip(units, -_REACH + middle / 2, _REACH - middle / 2), edges)
    mean_abs = np.abs(flat if offset is None else flat - np.asarray(offset, flat.dtype).reshape(-1, 1)).mean(1)
    if gamma is None:
        gamma = float(np.median(alpha / np.maximum(mean_abs, 1e-30)))
    low, centre, high = np.percentile(alpha, (5, 50, 95))
    return MatrixPicture(
        name=name,
        part=part,
        layer=layer,
        shape=(weight.shape[0], weight.shape[1]),
        counts=counts / max(1, len(picked)),
        edges=edges,
        levels=[float(level * np.median(step / np.maximum(alpha, 1e-30))) for level in sorted(grid)],
        alpha=(float(low), float(centre), float(high)),
        scales=count,
        mean_abs=float(np.abs(values).mean()),
        gamma=float(gamma),
        clipped=float((np.abs(units) > 1 + 1e-6).mean()),
        zeros=float((levels.reshape(-1)[picked] == 0).mean()) if 0 in grid else None,
        block=block,
        granularity=_granularity(count, weight.shape[0], weight.shape[1]),
    )


def _granularity(scales: int, rows: int, columns: int) -> str:
    if scales == 1:
        return "one scale"
    if scales == rows:
        return "one scale a row"
    return f"one scale for every {rows * columns // scales} weights"


def token_picture(labels: Sequence[str], states: Mapping[str, tuple[str, np.ndarray]]) -> TokenPicture:
    """Project several models' states of the same tokens onto the teacher's two principal components.

    Every state is scaled to length 1 first, as the contrastive term compares them by cosine; so all models are drawn
    at one scale, and a model whose tokens look alike shows as a small cloud.

    Args:
        labels: (tokens,) the tokens' text.
        states: name -> (role, (tokens, hidden) array), the teacher first.

    Raises:
        ValueError: the models' states are not of the same tokens, or of another width than the teacher's.
    """
    unit = {name: (role, _unit(array)) for name, (role, array) in states.items()}
    teacher = next(iter(unit.values()))[1]
    if any(array.shape != teacher.shape or len(array) != len(labels) for _, array in unit.values()):
        raise ValueError("the models' hidden states differ in shape")
    mean = teacher.mean(0)
    _, spread, axes = np.linalg.svd(teacher - mean, full_matrices=False)
    axes = np.pad(axes, ((0, max(0, 2 - len(axes))), (0, 0)))[:2]
    # the sign of a principal component is arbitrary: let the largest coefficient be positive
    axes = axes * np.where(axes[np.arange(2), np.abs(axes).argmax(1)] < 0, -1, 1)[:, None]
    different = np.asarray(labels)[:, None] != np.asarray(labels)[None, :]
    clouds = []
    for name, (role, array) in unit.items():
        cosines, own = array @ teacher.T, array @ array.T
        nearest = cosines.argmax(1)
        clouds.append(
            TokenCloud(
                name=name,
                role=role,
                points=(array - mean) @ axes.T,
                to_teacher=float(np.diagonal(cosines).mean()),
                among=float(own[different].mean()) if different.any() else 1.0,
                found=float((nearest == np.arange(len(nearest))).mean()),
            )
        )
    variance = spread**2
    return TokenPicture(list(labels), clouds, float(variance[:2].sum() / max(variance.sum(), 1e-30)))


def _unit(array: np.ndarray) -> np.ndarray:
    array = np.nan_to_num(np.asarray(array, np.float64))
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)

"""How much errors of weights matter: the second moments of what the weights are multiplied with.

An error e of a weight adds e·x to an output, so that squared errors count by the mean of x². What reads a tied
embedding as a head multiplies it with the last hidden states; what looks rows up, with 1, as often as tokens occur.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from abridged.methods.lockstep import check_finite, in_lockstep

if TYPE_CHECKING:
    from abridged.methods.base import Calibrate

#: Energy of a token, in those of the median token, from which it is scaled down: a first token's may be a million.
CAP = 10.0
#: How much the errors of a row that is looked up count beside those of a head that is tied to it.
LOOKED_UP = 1.0


class Importance(NamedTuple):
    """How much the errors of a weight (rows, columns) count."""

    squares: Tensor  # each one squared; of a shape that spreads to that of the weight
    moments: Tensor  # (columns, columns): those of a row together


def importances(model: nn.Module, matrices: Iterable[Any], calibrate: Calibrate) -> dict[str, Importance]:
    """What errors of matrices count, by their names.

    matrices: of the model's view, all still as they were. An embedding that no layer reads has none: within a row,
    errors count alike. Raises AbridgedError where inputs are not finite.
    """
    owners, counts, found = {}, {}, {}
    hooks = []
    for matrix in matrices:
        for path in (matrix.name, *matrix.tied):
            module = model.get_submodule(path)
            if not isinstance(module, nn.Embedding):
                owners[path] = matrix.name
            elif matrix.tied:
                counts[matrix.name] = torch.zeros(matrix.rows)
                hooks.append(module.register_forward_pre_hook(_counting(counts[matrix.name])))
    if not owners:
        return {}

    def take(path: str, moments: Tensor, _: Tensor | None) -> None:
        check_finite(path, moments)
        found[owners[path]] = moments.clone()

    try:
        in_lockstep(model, None, list(owners), calibrate, take, "Second moments", cap=CAP)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: of_embedding(own, counts[name]) if name in counts else Importance(own.diagonal(), own)
        for name, own in found.items()
    }


def of_embedding(moments: Tensor, counts: Tensor) -> Importance:
    """What errors of a tied embedding count, each side so much on average; of a row together, as of the mean row.

    moments (columns, columns): of what the head reads. counts (rows,): of tokens looked up.
    """
    head = moments / moments.diagonal().mean().clamp_min(1e-30)
    looked_up = counts.to(moments) / counts.mean().clamp_min(1e-30).to(moments)
    together = head.clone()
    together.diagonal().add_(LOOKED_UP)
    return Importance(head.diagonal() + LOOKED_UP * looked_up.unsqueeze(1), together)


def _counting(counts: Tensor) -> Any:
    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        counts.add_(torch.bincount(arguments[0].flatten().cpu(), minlength=len(counts)))

    return count

"""Which layer of the student answers to which of the teacher, and which of their rows count."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from abridged.data.batch import Batch
from abridged.errors import AbridgedError


def layer_map(student: int, teacher: int) -> dict[int, int]:
    """Every layer of the student to one of the teacher's, first to first and last to last, evenly spread between."""
    last = max(1, student - 1)
    return {i: round(i * (teacher - 1) / last) for i in range(student)}


def layer_maps(student: Sequence[int], teacher: Sequence[int]) -> dict[int, int]:
    """`layer_map` of layers that come in parts, such as an encoder's and then a decoder's: part to part."""
    found: dict[int, int] = {}
    ours = theirs = 0
    for mine, its in zip(student, teacher, strict=True):
        found |= {ours + i: theirs + j for i, j in layer_map(mine, its).items()}
        ours, theirs = ours + mine, theirs + its
    return found


def layer_pairs(
    name: str, chosen: dict[int, int] | None, student: Sequence[int], teacher: Sequence[int]
) -> dict[int, int]:
    """The layers that an objective called `name` compares: those `chosen` in a recipe, or `layer_maps`.

    Raises AbridgedError where a layer is chosen that student or teacher does not have.
    """
    pairs = chosen or layer_maps(student, teacher)
    check_layers(name, pairs, sum(student), sum(teacher))
    return pairs


def mean_over_rows(values: Tensor, counted: Tensor) -> Tensor:
    """The mean, (), of values (B, T) at the rows that are counted (B, T)."""
    return (values * counted).sum() / counted.sum().clamp_min(1)


def check_layers(name: str, pairs: dict[int, int], student: int, teacher: int) -> None:
    """Raise AbridgedError where `pairs` names a layer that student or teacher does not have."""
    beyond = [f"{i}: {j}" for i, j in pairs.items() if not (0 <= i < student and 0 <= j < teacher)]
    if beyond:
        raise AbridgedError(
            f"objectives.{name}.layers has {beyond[0]}, but the student's end at {student - 1} and the teacher's at "
            f"{teacher - 1}"
        )


def rows_that_count(batch: Batch, encoder: bool) -> Tensor:
    """(B, T) bool, or (B, S) for an encoder's layer: the rows of a layer that enter a loss."""
    if not encoder:
        return batch.counted
    assert batch.source_mask is not None
    return batch.source_mask.bool()

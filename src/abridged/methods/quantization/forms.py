"""Every way in which a quantiser can store a matrix, from the settings that there are; torch is not needed."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from abridged.methods.quantization.settings import WeightSettings

#: Settings of the rule by which scales are found and trained, which is not a matter of storage.
RULES = frozenset(
    {"quantizer", "initialization", "gamma", "rounding", "scale_gradient", "weight_gradient", "center", "scale_dtype"}
)
#: Levels of one engine, whose four are among those that zero points give.
FOR_ENGINES = ("q2_0",)
_GROUPS = frozenset({"granularity", "group_size"})  #: said by the caller


def forms(usual: WeightSettings, group_sizes: Iterable[int | None]) -> list[WeightSettings]:
    """Settings with the rules of `usual` and every bit width, grid and packing that its quantiser has.

    What there is is read off the settings themselves: of every setting that is not one of `RULES` each value that may
    be given. Forms of the same bits, grid and packing come once.

    Args:
        group_sizes: neighbours in a row that share a scale; None is a scale a row. The granularity of `usual` comes
            with them.
    """
    choices = {
        name: values
        for name, field in WeightSettings.model_fields.items()
        if name not in RULES | _GROUPS and (values := _values(field.annotation))
    }
    choices["levels"] = [levels for levels in choices["levels"] if levels not in FOR_ENGINES]
    choices["bits"] = [bits for bits in usual.kind.bits if bits in choices["bits"]]
    own = (usual.granularity, usual.group_size)
    groups = dict.fromkeys([own, *(("per_group", size) if size else ("per_channel", None) for size in group_sizes)])
    rules = usual.model_dump(exclude_unset=True, include=set(RULES))
    defaults = {name: field.default for name, field in WeightSettings.model_fields.items()}
    found: dict[WeightSettings, None] = {}
    for (granularity, size), values in itertools.product(groups, itertools.product(*choices.values())):
        given = dict(zip(choices, values, strict=True))
        try:
            form = WeightSettings.model_validate({**rules, **given, "granularity": granularity, "group_size": size})
        except ValidationError:  # such as ternary levels at 4 bits
            continue
        said = {**given, "levels": form.grid_levels, "group_size": size}
        said = {name: value for name, value in said.items() if name == "bits" or value != defaults[name]}
        found[WeightSettings.model_validate({**rules, **said, "granularity": granularity})] = None
    return list(found)


def _values(annotation: Any) -> list[Any]:
    """The values of a setting that has a few, None left out where it only stands for one of the others."""
    if annotation is bool:
        return [False, True]
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = typing.get_args(annotation)
        values = [value for one in inner if one is not type(None) for value in _values(one)]
        return [*values, None] if values and type(None) in inner else values
    return []

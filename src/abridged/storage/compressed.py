"""What was done to a model: the one record that checkpoint, report, probe and exporters read. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from abridged.storage.shapes import ShapesSpec

if TYPE_CHECKING:
    from torch import Tensor

    from abridged.storage.view import View


@dataclass(frozen=True)
class RankedHeads:
    """How the heads of an attention module were ranked, and which of them stayed."""

    scores: list[float]  #: of each group of heads that share keys and values; more is kept
    kept: list[int]  #: the groups that stayed, sorted
    queries: int  #: query heads in a group


@dataclass(frozen=True)
class Compressed:
    """What methods have done to a model, as far as its modules do not show it themselves."""

    view: View | None = None
    """What it is made of before it is cut, as its checkpoint says; None: as its class and config say."""
    shapes: ShapesSpec | None = None
    """The sizes that it was cut to; None where its config still says them."""
    hidden_units: Tensor | None = None
    """What its hidden units are of the teacher's: indices (h,), or combinations as columns (units, h)."""
    layers_before: int | None = None
    """How many layers it had before some were left out."""
    kept_layers: tuple[int, ...] | None = None
    """Which of those it still has."""
    unquantized_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What everything that is not quantised is stored in, where a method has chosen."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """‖W − ΣA⊗B‖ / ‖W‖ of each matrix that was factored, when it was, by path."""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Numbers for abridged.json, by the name of the method."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sentences that a person is told, by the name of the method."""
    ranked: Mapping[str, Mapping[str, RankedHeads]] = field(default_factory=dict)
    """How heads were ranked, by the name of the method and by attention module of the model before."""

    @property
    def is_smaller(self) -> bool:
        """Whether the model itself, rather than its modules' storage, is another than its teacher."""
        return self.shapes is not None or self.layers_before is not None

    @property
    def heads(self) -> Mapping[str, RankedHeads]:
        """How the last method that ranked heads did so, by attention module; empty where none did."""
        return next(reversed(list(self.ranked.values())), {})

    def account(self) -> dict[str, dict[str, Any]]:
        """What abridged.json says of each method that has something to say."""
        told: dict[str, dict[str, Any]] = {name: dict(facts) for name, facts in self.facts.items()}
        for name, ranked in self.ranked.items():
            told.setdefault(name, {})["heads"] = {path: asdict(one) for path, one in ranked.items()}
        for name, notes in self.notes.items():
            told.setdefault(name, {})["notes"] = list(notes)
        return told


#: Fields that stand by name or path: what a later method says is added.
_ADDED = ("errors", "facts", "notes", "ranked")


def compressed_of(model: Any) -> Compressed:
    """The record that a model carries; an empty one of a model to which nothing was done."""
    found: Compressed = getattr(model, "compressed", None) or Compressed()
    return found


def record(model: Any, **changes: Any) -> Compressed:
    """Change fields of a model's record, and return it; what stands by name or path is added to what is there."""
    before = compressed_of(model)
    added = {name: {**getattr(before, name), **value} for name, value in changes.items() if name in _ADDED}
    model.compressed = replace(before, **{**changes, **added})
    return compressed_of(model)


def heads_in(account: Mapping[str, Any]) -> dict[str, RankedHeads]:
    """How heads were ranked, as an abridged.json says it; KeyError, TypeError or ValueError where it does not."""
    told = next((one["heads"] for one in account["methods"].values() if "heads" in one), None)
    if told is None:
        raise KeyError("heads")
    return {path: RankedHeads(**ranked) for path, ranked in told.items()}

"""How far a model is smaller than its config says: the ``shapes`` of ``quantization_config``. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field, model_validator

_MAX_SIZE = 1 << 31
_MAX_ENTRIES = 1 << 17
_MAX_PARAMETERS = 1 << 48


class ShapesSpec(BaseModel):
    """The sizes of a model that was cut: config.json keeps those of the model that it was cut from."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    parameters: int = Field(ge=1, lt=_MAX_PARAMETERS)
    """Of the model before it was cut, tied ones once: what ratios are taken against."""
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict, max_length=_MAX_ENTRIES)
    """By module: (rows, columns) of a matrix, rows being outputs or vocabulary entries; (width,) of a norm."""
    heads: dict[str, int] = Field(default_factory=dict, max_length=_MAX_ENTRIES)
    """Query heads by attention module."""
    removed: tuple[str, ...] = Field(default=(), max_length=_MAX_ENTRIES)
    """Attention modules and linear layers that are not there any more: the residual stream passes them."""

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, data: object) -> object:
        """JSON has lists only."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if isinstance(data.get("removed"), list):
            data["removed"] = tuple(data["removed"])
        if isinstance(data.get("sizes"), dict):
            data["sizes"] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["sizes"].items()}
        return data

    @model_validator(mode="after")
    def _check(self) -> ShapesSpec:
        for path, sizes in self.sizes.items():
            if len(sizes) not in (1, 2) or any(not 1 <= size < _MAX_SIZE for size in sizes):
                raise ValueError(f"{path[:80]!r} has the absurd size {list(sizes)[:4]}")
        for path, heads in self.heads.items():
            if not 1 <= heads < _MAX_SIZE:
                raise ValueError(f"{path[:80]!r} has the absurd number of {heads} heads")
        return self

    def renamed(self, place: Callable[[str], str | None]) -> ShapesSpec:
        """It with other paths, as `place` says, and without what that has none for."""
        return self.model_copy(
            update={
                "sizes": {new: size for path, size in self.sizes.items() if (new := place(path))},
                "heads": {new: heads for path, heads in self.heads.items() if (new := place(path))},
                "removed": tuple(new for path in self.removed if (new := place(path))),
            }
        )

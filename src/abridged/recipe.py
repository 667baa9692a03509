"""Recipes: ordered stages of methods, objectives and optimisation, read from YAML and validated.

Nothing here imports torch, so that listing and checking recipes is instant: the registries name settings
classes, which import what they need when they are put to work.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticUndefined

from abridged.core import shipped
from abridged.core.errors import AbridgedError
from abridged.core.settings import BlockSettings, Settings, TrainingSettings
from abridged.core.settings_text import apply_overrides, build, nearest, nested_model, parse_yaml, registered
from abridged.core.text import read_text
from abridged.methods import METHODS
from abridged.objectives import OBJECTIVES

PLANNED = "best-2-2-8"
"""The recipe in which bits are planned where nobody names one."""


class Stage(Settings):
    """One round of training: what changes the student, what it is asked to match, and how it is optimised."""

    name: str = Field("", description="what this stage does, in a few words; shown while it runs")
    methods: dict[str, Any] = Field(description="compression methods by name, each with its settings")
    objectives: dict[str, Any] = Field(description="loss terms by name, each with its weight and settings")
    teacher: Literal["original", "previous"] = Field(
        default="original",
        description="whom the student learns from: the full-precision model, or what the stage before has made of it "
        "(distillation through falling precision, as in BiT)",
    )
    runner: Literal["whole", "blocks", "scales", "frozen"] = Field(
        default="whole",
        description="who carries the stage out: whole holds the model in memory; blocks has one block of it at a time, "
        "from safetensors on disk, and trains it, if at all, to put out what the teacher's block does; scales goes on "
        "with what blocks has packed, whose codes stay, and trains scales, norms and biases through all of it; frozen "
        "trains masks or adapters alone, with weights that a block is lent from disk while it runs",
    )
    blocks: BlockSettings = Field(default_factory=BlockSettings, description="what the runner blocks reads")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="optimisation settings")

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        return _registered_parts(METHODS, "method", value, f"{_where(info)}methods")

    @field_validator("objectives", mode="before")
    @classmethod
    def _objectives(cls, value: Any, info: ValidationInfo) -> dict[str, Any]:
        return _registered_parts(OBJECTIVES, "objective", value, f"{_where(info)}objectives")

    @field_validator("blocks", mode="before")
    @classmethod
    def _blocks(cls, value: Any, info: ValidationInfo) -> Any:
        return build(BlockSettings, {} if value is None else value, f"{_where(info)}blocks")

    @field_validator("training", mode="before")
    @classmethod
    def _training(cls, value: Any, info: ValidationInfo) -> Any:
        return build(TrainingSettings, {} if value is None else value, f"{_where(info)}training")

    @model_validator(mode="after")
    def _has_a_purpose(self) -> Stage:
        if self.runner == "blocks" and (self.objectives or self.teacher != "original"):
            raise ValueError(
                "a stage of the runner blocks learns from the original teacher's blocks alone: it has no objectives"
            )
        if self.runner == "scales" and (self.methods or self.teacher != "original"):
            raise ValueError("a stage of the runner scales has no methods, and learns from the original teacher")
        if self.runner == "frozen" and self.teacher != "original":
            raise ValueError("a stage of the runner frozen learns from the original teacher alone")
        if self.trains and not self.objectives and self.runner != "blocks":
            raise ValueError("a stage that trains needs at least one objective (training.steps: 0 does not train)")
        return self

    @property
    def trains(self) -> bool:
        """Whether any step is taken, rather than only the methods applied."""
        return bool(self.training.epochs or self.training.steps)

    @property
    def in_any_order(self) -> bool:
        """Whether its blocks know nothing of what becomes of each other, so that several processes may share them."""
        alone = self.runner == "blocks" and self.blocks.inputs == "full" and len(self.methods) == 1
        return alone and not self.trains


class Expected(Settings):
    """What `abridged plan` expects of a recipe that it has written; nothing is done by it, and a report compares."""

    size: int = Field(ge=1, description="bytes that were asked for")
    asked: dict[str, str | float | bool] = Field(
        default_factory=dict, description="what else was asked: speed, memory, prune"
    )
    file_bytes: int = Field(ge=1, description="of the weights' file")
    loss: float = Field(
        ge=0, description="divergence from the original's answers before any training, in nats a token (or an example)"
    )
    way: str = Field("", description="how sensitivity was found: measured, interpolated or fisher")
    tokens: int = Field(0, ge=0, description="on how many tokens (or examples)")
    front: list[tuple[int, float]] = Field(default_factory=list, description="other sizes: bytes and loss of each")
    tokens_per_second: float | None = Field(
        None, gt=0, description="that are written one by one on the machine that was measured, where speed was limited"
    )
    memory: int | None = Field(None, ge=0, description="bytes in memory there, where speed or memory were limited")


class Recipe(Settings):
    """A whole compression run. `Recipe.load("quantgpt-2-2-8")` reads one that is shipped."""

    name: str = Field(description="the recipe's name, as in the file name")
    description: str = Field("", description="one or two sentences on what it is for")
    paper: str = Field("", description="the publication it follows")
    model: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of a model of videos that an image-text model is made into, such as scale (see LiteVL)",
    )
    expected: Expected | None = Field(None, description="what a plan expects of it, where it comes from one")
    stages: list[Stage] = Field(min_length=1, description="what is done, in order")

    @field_validator("stages", mode="before")
    @classmethod
    def _stages(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, list):
            raise AbridgedError(f"{_where(info)}stages: expected a list of stages")
        stages = [build(Stage, stage, f"{_where(info)}stages.{i}") for i, stage in enumerate(value)]
        if stages and stages[0].teacher == "previous":
            raise AbridgedError(f"{_where(info)}stages.0.teacher: the first stage has none before it")
        runners = [stage.runner for stage in stages]
        if len({runner == "frozen" for runner in runners}) > 1:
            raise AbridgedError(f"{_where(info)}stages: the runner frozen is that of all stages, or of none")
        if set(runners) & {"blocks", "scales"} and runners not in (["blocks"], ["blocks", "scales"]):
            raise AbridgedError(
                f"{_where(info)}stages: a stage of the runner blocks must be the only one, but for one of the runner "
                "scales after it"
            )
        return stages

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
        """Read and validate a recipe.

        source: the name of a shipped recipe, the path of a YAML file, the parsed content of one, or a Recipe.
        overrides: "key=value" each, the key dotted from the recipe's root ("stages.0.training.steps=500";
            "stages.0.steps=500" is short for it; "stages.*." reaches every stage), the value in YAML.
            "stages.0.objectives.contrastive=null" takes that objective out; "budget.parameters=0.3" sets it for every
            method of the recipe that has a setting `budget`.
        Raises AbridgedError for unknown recipes, unknown keys (naming the nearest right one) and bad values.
        """
        if isinstance(source, Recipe):
            data, origin = source.model_dump(mode="json"), f"recipe {source.name}"
        elif isinstance(source, Mapping):
            data, origin = dict(source), "recipe"
        else:
            path = find(source)
            data, origin = parse_yaml(read_text(path), str(path)), f"recipe {path.name}"
        if not isinstance(data, dict):
            raise AbridgedError(f"{origin}: expected keys and values at the top, such as `stages:`")
        full = [expand(one) for override in overrides for one in reach_methods(override, data)]
        return apply_overrides(cls, data, [*counted_in_steps(full, r"stages\.[^.]+\.training\."), *full], origin)

    @staticmethod
    def names() -> list[str]:
        """The shipped recipes' names, sorted."""
        return shipped.names()

    @staticmethod
    def text(name_or_path: str | Path) -> str:
        """The commented YAML of a recipe, as written."""
        return read_text(find(name_or_path))

    @classmethod
    def plain(cls, training: TrainingSettings) -> Recipe:
        """One stage of hard labels, without methods: fine-tuning."""
        return cls(name="finetune", stages=[{"methods": {}, "objectives": {"labels": {}}, "training": training}])

    @property
    def has_methods(self) -> bool:
        """Whether anything is compressed."""
        return any(method.stores for stage in self.stages for method in stage.methods.values())

    @property
    def adapts(self) -> bool:
        """Whether nothing but adapters is trained, which a packed model can have beside it."""
        return all(
            stage.runner == "whole"
            and stage.training.freeze_weights
            and stage.methods
            and all(method.adapts for method in stage.methods.values())
            for stage in self.stages
        )

    @property
    def streamed(self) -> bool:
        """Whether the model is never held whole, but read from disk."""
        return any(stage.runner != "whole" for stage in self.stages)

    @property
    def needs_teacher(self) -> bool:
        """Whether any stage learns from the model that it began with."""
        return any(objective.needs_teacher for stage in self.stages for objective in stage.objectives.values())

    def describe(self) -> str:
        """The recipe as YAML with every setting spelled out, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)

    def compact(self) -> str:
        """The recipe as YAML with what was set in it, and what occurs again as an alias."""
        seen: dict[str, Any] = {}

        def shared(value: Any) -> Any:
            if isinstance(value, list):
                return [shared(inner) for inner in value]
            if not isinstance(value, dict) or not value:
                return value
            own = {key: shared(inner) for key, inner in value.items()}
            return seen.setdefault(repr(own), own)

        data = shared(self.model_dump(mode="json", exclude_unset=True))
        return yaml.safe_dump(data, sort_keys=False, width=120, default_flow_style=None)

    def warnings(self, written: Recipe | None = None) -> list[str]:
        """What a person should know before running this recipe, one sentence each; usually nothing.

        written: the recipe as it was before overrides, if any.
        """
        trained = any(stage.trains for stage in self.stages)
        bits = [b for stage in self.stages for m in stage.methods.values() for b in _weight_bits(m)]
        if not trained and bits and min(bits) < 4:
            return [
                f"recipe {self.name} stores weights in {min(bits)} bits without any training: "
                "expect gibberish from the result (give the stages some training.steps, or use at least 4 bits)"
            ]
        pairs = enumerate(zip(self.stages, written.stages if written else (), strict=False))
        return [
            f"stage {number + 1} is given {now.training.steps:,} of its {before.training.steps:,} steps, which its "
            f"learning rate is meant for: a lower one may do better (--set stages.{number}.learning_rate=...)"
            for number, (now, before) in pairs
            if not now.training.epochs
            and not before.training.epochs
            and 0 < now.training.steps < before.training.steps / 10
            and now.training.learning_rate == before.training.learning_rate
        ]


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe given by shipped name or by path; AbridgedError if there is none."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise AbridgedError(f"recipe file {path} does not exist")
        return path
    if str(name_or_path) in Recipe.names():
        return shipped.FOLDER / f"{name_or_path}.yaml"
    hint = nearest(str(name_or_path), Recipe.names())
    raise AbridgedError(f"unknown recipe {str(name_or_path)!r}{hint}; `abridged recipes` lists all of them")


def expand(override: str) -> str:
    """Write an override's key in full: "stages.0.steps=5" is short for "stages.0.training.steps=5"."""
    return re.sub(
        r"^(\s*stages\.[^.=]+\.)(\w+)(?=\s*[.=])",
        lambda m: f"{m[1]}training.{m[2]}" if m[2] in TrainingSettings.model_fields else m[0],
        override,
    )


def counted_in_steps(overrides: Sequence[str], where: str = "") -> list[str]:
    """Overrides that take epochs away wherever those given ask for steps, which would do nothing beside them.

    where: a regular expression for what stands before "steps".
    """
    keys = [override.partition("=")[0].strip() for override in overrides]
    return [f"{key.removesuffix('steps')}epochs=null" for key in keys if re.fullmatch(f"{where}steps", key)]


def reach_methods(override: str, data: Mapping[str, Any]) -> list[str]:
    """An override that begins with a setting of methods, such as "budget.parameters=0.3", once for each that has it."""
    first = override.partition("=")[0].strip().partition(".")[0]
    if first in Recipe.model_fields or not isinstance(data.get("stages"), list):
        return [override]
    found = [
        f"stages.{i}.methods.{name}.{override.strip()}"
        for i, stage in enumerate(data["stages"])
        if isinstance(stage, Mapping) and isinstance(stage.get("methods"), Mapping)
        for name in stage["methods"]
        if name in METHODS and first in {*METHODS[name].model_fields, *METHODS[name].renamed}
    ]
    return found or [override]


class Key(NamedTuple):
    """One setting a recipe may have."""

    path: str
    type: str
    default: str
    description: str


def all_keys() -> Iterator[Key]:
    """Every key of a recipe, in order, with its type, default and description."""
    yield from _keys_of(Recipe, "", skip=("stages",))
    yield from _keys_of(Stage, "stages.N.", skip=("methods", "objectives", "blocks", "training"))
    for group, registry in (("methods", METHODS), ("objectives", OBJECTIVES)):
        for name in registry:
            yield from _keys_of(registered(registry, name), f"stages.N.{group}.{name}.")
    yield from _keys_of(BlockSettings, "stages.N.blocks.")
    yield from _keys_of(TrainingSettings, "stages.N.training.")


def _keys_of(model: type[BaseModel], prefix: str, skip: Sequence[str] = ()) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        inner = nested_model(field.annotation)
        if name in skip:
            continue
        if inner is not None:
            yield from _keys_of(inner, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else _flow(default)
        yield Key(prefix + name, _type_name(field.annotation), shown, field.description or "")


def _type_name(annotation: Any) -> str:
    """An annotation as a person writes it: the values of a Literal, and null for None."""
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(str(value) for value in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_type_name(inner) for inner in typing.get_args(annotation))
    if annotation is type(None):
        return "null"
    if (origin := typing.get_origin(annotation)) is not None:
        return f"{origin.__name__}[{', '.join(_type_name(inner) for inner in typing.get_args(annotation))}]"
    if isinstance(annotation, type):
        return "settings" if issubclass(annotation, BaseModel) else annotation.__name__
    return "..." if annotation is Ellipsis else str(annotation)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _registered_parts(registry: Mapping[str, Any], kind: str, value: Any, where: str) -> dict[str, Any]:
    """Build each named part of a stage from its registered settings class; null takes a part out."""
    if not isinstance(value, Mapping):
        raise AbridgedError(f"{where}: expected {kind}s by name, such as `{next(iter(registry))}: {{...}}`")
    return {
        name: build(registered(registry, name, kind, where), settings, f"{where}.{name}")
        for name, settings in value.items()
        if settings is not None
    }


def _where(info: ValidationInfo) -> str:
    """Dotted path of the object being validated, ending in a dot unless it is the root."""
    where = (info.context or {}).get("where", "")
    return f"{where}." if where else ""


def _weight_bits(method: Any) -> list[int]:
    """Bits of the weights and embeddings that a method stores, for methods that have such settings."""
    parts = [getattr(method, part, None) for part in ("weights", "embeddings")]
    parts += getattr(method, "exceptions", {}).values()
    return [part.bits for part in parts if part is not None and part.bits]

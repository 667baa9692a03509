"""Settings as text: YAML and key=value overrides made into settings objects, with errors that say where and what."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from abridged.errors import AbridgedError

Model = TypeVar("Model", bound=BaseModel)


def build(model: type[Model], data: Any, where: str = "", origin: str = "") -> Model:
    """Validate `data` as a `model`.

    where: dotted path of `data` in the whole, such as "stages.0.training"; nested validators find it in their
        context. origin: what is being read, put before the message.
    Raises AbridgedError with the path of the first fault; for an unknown key it names the nearest known one.
    """
    if isinstance(data, model):
        return data
    prefix = f"{origin}: " if origin else ""
    if not isinstance(data, Mapping):
        raise AbridgedError(f"{prefix}{where or 'top level'}: expected keys and values, not {data!r}")
    try:
        return model.model_validate(dict(data), context={"where": where})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        location = [str(part) for part in fault["loc"]]
        path = ".".join([where, *location] if where else location)
        if fault["type"] == "extra_forbidden":
            raise AbridgedError(f"{prefix}unknown key {path}{_known_keys(model, location)}") from None
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] in ("missing", "value_error") else f" (given: {fault['input']!r})"
        raise AbridgedError(f"{prefix}{path}: {message[0].lower()}{message[1:]}{given}") from None
    except AbridgedError as error:
        raise AbridgedError(f"{prefix}{error}") from None


def apply_overrides(model: type[Model], data: Mapping[str, Any], overrides: Sequence[str], origin: str = "") -> Model:
    """Validate `data` as a `model` after setting each "dotted.key=value" of `overrides` in it, values in YAML.

    "*" in a key stands for every item of a list. `data` itself stays as it is. Raises AbridgedError.
    """
    try:
        data = _unshared(data)
    except RecursionError:
        raise AbridgedError(f"{origin or 'settings'}: an alias refers to what it stands in") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise AbridgedError(f"override {override!r}: expected key=value, such as steps=500")
        _assign(data, key.strip().split("."), parse_yaml(text, f"override {override!r}"), override)
    return build(model, data, "", origin)


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 5e-4 is a number, `no` is a word, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML safely; AbridgedError, with the line, where it is malformed."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise AbridgedError(f"{origin}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise AbridgedError(f"{origin}: not valid YAML: {error}") from None


def registered(registry: Mapping[str, Any], name: str, kind: str = "part", where: str = "") -> type[BaseModel]:
    """The settings class that a registry lists under `name`, as itself or as "module:Class"; AbridgedError if none."""
    if name not in registry:
        prefix = f"{where}: " if where else ""
        hint = nearest(name, registry)
        raise AbridgedError(f"{prefix}unknown {kind} {name!r}{hint}; there are: {', '.join(registry)}")
    target = registry[name]
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        target = getattr(import_module(module), attribute)
    return target


def nearest(name: str, known: Iterable[str]) -> str:
    """ ", did you mean …?" with the most similar of the known names, or nothing if none is similar."""
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not match:
        match = [k for k in known if name and (k.startswith(name) or name.startswith(k))][:1]
    return f", did you mean {match[0]!r}?" if match else ""


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `Weights` or `Weights | None`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for inner in typing.get_args(annotation):
            if (found := nested_model(inner)) is not None:
                return found
    return None


def _known_keys(model: type[BaseModel], location: list[str]) -> str:
    """What an unknown key at `location` may have been meant as: its nearest neighbour, or all there are."""
    for part in location[:-1]:
        field = model.model_fields.get(part)
        inner = nested_model(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    known = list(model.model_fields)
    below = {
        key: f"{name}.{key}"
        for name, field in model.model_fields.items()
        if (inner := nested_model(field.annotation)) is not None
        for key in inner.model_fields
    }
    hint = nearest(location[-1], [*known, *below])
    for key, path in below.items():
        hint = hint.replace(repr(key), repr(path)) if key not in known else hint
    return hint or f" (known here: {', '.join(known)})"


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's aliases share is apart, so that changing one does not change the other."""
    if isinstance(value, Mapping):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _assign(node: Any, parts: list[str], value: Any, override: str) -> None:
    """Walk down the dotted key's parts, making mappings where there are none yet, and set the last."""
    part, rest = parts[0], parts[1:]
    if isinstance(node, list):
        positions = range(len(node)) if part == "*" else [int(part)] if part.isdecimal() else None
        if positions is None or any(i >= len(node) for i in positions):
            known = ", ".join([*map(str, range(len(node))), "*"])
            raise AbridgedError(f"override {override!r}: there is no item {part!r} (there are {known})")
        for i in positions:
            if rest:
                _assign(node[i], rest, value, override)
            else:
                node[i] = value
    elif not isinstance(node, dict):
        raise AbridgedError(f"override {override!r}: nothing can be set at {part!r}, below a plain value")
    elif not rest:
        node[part] = value
    else:
        if node.get(part) is None:
            node[part] = {}
        _assign(node[part], rest, value, override)

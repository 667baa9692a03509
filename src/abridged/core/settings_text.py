"""Settings as text: YAML and key=value overrides made into settings objects, with errors that say where and what."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from abridged.core.errors import AbridgedError
from abridged.core.lazy import load
from abridged.core.text import has_half_characters

Model = TypeVar("Model", bound=BaseModel)
_CHARACTERS, _NODES = 2**18, 20_000  #: the most that settings may have; shipped recipes have thousands and hundreds
_SHOWN = 80  #: characters of a wrong value in a message


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
        raise AbridgedError(f"{prefix}{where or 'top level'}: expected keys and values, not {_shown(data)}")
    for key in data:
        if not isinstance(key, str):
            raise AbridgedError(f"{prefix}unknown key {where + '.' if where else ''}{_shown(key)}")
    try:
        return model.model_validate(dict(data), context={"where": where})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        location = [str(part) for part in fault["loc"]]
        path = ".".join([where, *location] if where else location)
        if fault["type"] == "extra_forbidden":
            raise AbridgedError(f"{prefix}unknown key {path}{_known_keys(model, location)}") from None
        message = fault["msg"].removeprefix("Value error, ")
        given = "" if fault["type"] in ("missing", "value_error") else f" (given: {_shown(fault['input'])})"
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
            raise AbridgedError(f"override {_shown(override)}: expected key=value, such as steps=500")
        _assign(data, key.strip().split("."), parse_yaml(text, f"override {_shown(override)}"), override)
    return build(model, data, "", origin)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 5e-4 is a number, `no` is a word, a key that is no text or is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or keys", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {_shown(key_node.value)} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def get_single_data(self) -> Any:
        """The one document, unless it is large, or grows so when what aliases stand for is put in their places."""
        node = self.get_single_node()
        if node is not None and _size(node, {}) > _NODES:
            raise yaml.MarkedYAMLError(problem=f"it has more than {_NODES:,} values, aliases spelled out")
        return None if node is None else self.construct_document(node)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is once its aliases are spelled out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if known.get(id(node)) == 0:
        raise yaml.MarkedYAMLError(problem="an alias refers to what it stands in", problem_mark=node.start_mark)
    if id(node) not in known:
        known[id(node)] = 0  # until it is known
        inner = (n for entry in node.value for n in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_size(n, known) for n in inner)
    return known[id(node)]


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML safely; AbridgedError, with the line, where it is malformed or more than settings can be."""
    try:
        if len(text) > _CHARACTERS:
            raise AbridgedError(f"{origin}: longer than settings can be, {_CHARACTERS:,} characters")
        return _checked(yaml.load(text, Loader=_Loader))  # a SafeLoader
    except RecursionError:
        raise AbridgedError(f"{origin}: not valid YAML: it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise AbridgedError(f"{origin}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise AbridgedError(f"{origin}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # of PyYAML, for a value of another type
        raise AbridgedError(f"{origin}: not valid YAML: a value is not what it is marked as ({error})") from None


def _checked(value: Any) -> Any:
    """A value of YAML; ValueError where it holds what no setting can be, and no message could show."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _checked(key)
            _checked(item)
    elif isinstance(value, list):
        for item in value:
            _checked(item)
    elif isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a number of more than 63 bits")
    elif isinstance(value, str) and has_half_characters(value):
        raise ValueError("half a character")
    elif value is not None and not isinstance(value, int | float | str):
        raise ValueError(f"a {type(value).__name__}")
    return value


def registered(registry: Mapping[str, Any], name: str, kind: str = "part", where: str = "") -> type[BaseModel]:
    """The settings class that a registry lists under `name`, as itself or as "module:Class"; AbridgedError if none."""
    if name not in registry:
        prefix = f"{where}: " if where else ""
        hint = nearest(str(name), registry)
        raise AbridgedError(f"{prefix}unknown {kind} {str(name)!r}{hint}; there are: {', '.join(registry)}")
    target = registry[name]
    return load(target) if isinstance(target, str) else target


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
            raise AbridgedError(f"override {_shown(override)}: there is no item {part!r} (there are {known})")
        for i in positions:
            if rest:
                _assign(node[i], rest, value, override)
            else:
                node[i] = value
    elif not isinstance(node, dict):
        raise AbridgedError(f"override {_shown(override)}: nothing can be set at {part!r}, below a plain value")
    elif not rest:
        node[part] = value
    else:
        if node.get(part) is None:
            node[part] = {}
        _assign(node[part], rest, value, override)

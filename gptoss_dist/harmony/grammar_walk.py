"""The schemas within a JSON schema: in what order they stand, where references lead, and how deep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from gptoss_dist.errors import ConfigError

MOST_JSON_LEVELS = 100
MOST_VALUES = 50_000
MOST_SCHEMA_LEVELS = 400

_OF_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_ONE_SCHEMA = (
    *("items", "additionalItems", "contains", "additionalProperties", "propertyNames"),
    *("not", "if", "then", "else"),
)


def check_levels(value: Any, where: str) -> None:
    """Refuse what is nested too deep, without recursing into it. Raises ConfigError."""
    level = [value]
    for _ in range(MOST_JSON_LEVELS):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
        if len(level) > MOST_VALUES:
            raise ConfigError(f"{where}: more than {MOST_VALUES} values in it; a schema cannot be that large.")
    raise ConfigError(f"{where}: nested more than {MOST_JSON_LEVELS} levels deep; use $ref and $defs.")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def children(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """(path, schema) of every schema directly inside; schemas that are true or false are left out."""
    for keyword, value in node.items():
        inner: list[tuple[str, Any]] = []
        if keyword in _OF_SCHEMAS_BY_NAME and isinstance(value, Mapping):
            inner = [(f"{path}.{keyword}.{name}", child) for name, child in value.items()]
        elif keyword in (*_OF_SCHEMAS, "items") and isinstance(value, list | tuple):
            inner = [(f"{path}.{keyword}[{index}]", child) for index, child in enumerate(value)]
        elif keyword in _OF_ONE_SCHEMA:
            inner = [(f"{path}.{keyword}", value)]
        for where, child in inner:
            if isinstance(child, Mapping):
                yield where, child
            elif not isinstance(child, bool):
                raise ConfigError(f"{where}: expected a JSON schema, an object; found {type(child).__name__}.")


def mapped(node: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    """A copy of a schema in which `change` was made to every schema directly inside; anything else stays as it is."""

    def changed(child: Any) -> Any:
        return change(child) if isinstance(child, Mapping) else child

    copy = dict(node)
    for keyword, value in node.items():
        if keyword in _OF_SCHEMAS_BY_NAME and isinstance(value, Mapping):
            copy[keyword] = {name: changed(child) for name, child in value.items()}
        elif keyword in (*_OF_SCHEMAS, "items") and isinstance(value, list | tuple):
            copy[keyword] = [changed(child) for child in value]
        elif keyword in _OF_ONE_SCHEMA:
            copy[keyword] = changed(value)
    return copy


def patterns_of(node: Mapping[str, Any]) -> list[str]:
    """The regular expressions that a schema itself holds."""
    by_pattern = node.get("patternProperties")
    patterns = [node.get("pattern"), *(by_pattern if isinstance(by_pattern, Mapping) else ())]
    return [pattern for pattern in patterns if isinstance(pattern, str)]


def has_identifier(node: Mapping[str, Any]) -> bool:
    """Whether a schema has a name of its own, from which references in it start."""
    return "$id" in node or isinstance(node.get("id"), str)


def walk(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, schema) of `node` and of every schema inside, outer ones first."""
    yield path, node
    for where, child in children(node, path):
        yield from walk(child, where)


def check_references(root: Mapping[str, Any]) -> None:
    """Refuse references that could lead so deep that a recursive compiler would run out of stack.

    The depth is bounded from above: as if one way led through every schema that is referred to.
    """
    seen: set[str] = set()
    places: list[Mapping[str, Any]] = [root]
    depth = 0
    while places:
        place = places.pop()
        depth += _levels(place)
        if depth > MOST_SCHEMA_LEVELS:
            raise ConfigError(
                f": with its references, it may become more than {MOST_SCHEMA_LEVELS} schemas deep; use fewer $ref."
            )
        for _, node in walk(place, ""):
            reference = node.get("$ref")
            if isinstance(reference, str) and reference not in seen:
                seen.add(reference)
                target = resolve(root, reference)
                if target is None:
                    raise ConfigError(f": $ref {reference!r} leads nowhere in it; write #/$defs/NAME.")
                places += [target] if isinstance(target, Mapping) else []


def _levels(node: Mapping[str, Any]) -> int:
    """How deep schemas stand within a schema, itself included."""
    return 1 + max((_levels(child) for _, child in children(node, "")), default=0)


def resolve(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within the schema points to; None where it leads nowhere. Only pointers are followed."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    target: Any = root
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
            target = target[int(key)]
        else:
            target = target.get(key) if isinstance(target, Mapping) else None
    return target

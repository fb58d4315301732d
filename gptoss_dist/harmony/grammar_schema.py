"""Which JSON schemas can be enforced; what is refused is named by its path, before anything is generated.

Bounds that llguidance does not have, with what happens beyond them in version 1.9: text of 128 KiB; 100 levels of JSON
and 400 schemas within schemas, references followed (its compiler recurses: a chain of 1,000 references overflows the
stack and ends the process); 500 properties of one object (each optional one takes places in its parser's row); patterns
of 2,000 atoms, 10,000 together, and multiples of 10,000 (beyond, minutes within its own limits).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from gptoss_dist.errors import ConfigError, PromptError
from gptoss_dist.harmony.checks import check_text
from gptoss_dist.harmony.grammar_bounds import MOST_ATOMS, MOST_PATTERN_ATOMS, MOST_PATTERNS, is_too_fine, is_too_large
from gptoss_dist.harmony.grammar_json import text_of, try_out
from gptoss_dist.harmony.grammar_lenient import enforceable
from gptoss_dist.harmony.grammar_pattern import expanded_size
from gptoss_dist.harmony.grammar_walk import (
    check_levels,
    check_references,
    children,
    has_identifier,
    patterns_of,
    walk,
)

MOST_CHARACTERS = 131_072
MOST_PROPERTIES = 500
MOST_TRIES = 200

_DEFINITIONS = ("$defs", "definitions")
# What llguidance compiles to regular expressions, whose limits show only when a text reaches them.
_TRIED_ALONE = ("pattern", "patternProperties", "allOf", "multipleOf")


def check_schema(schema: Any, where: str, lenient: bool = False) -> str:
    """The text of the schema, once it is known that it can be enforced.

    where: what the caller calls the schema; messages continue it with the path inside. lenient: what cannot be enforced
    is left out instead of refused. Raises ConfigError.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where}: expected a JSON schema, an object; found {type(schema).__name__}.")
    check_levels(schema, where)
    try:
        text = check_text(text_of(dict(schema)), where)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}.") from error
    except PromptError as error:
        raise ConfigError(str(error)) from error
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: {len(text)} characters; a schema may have {MOST_CHARACTERS}.")
    try:
        return _checked(text, lenient)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


@functools.lru_cache(maxsize=256)
def _checked(text: str, lenient: bool) -> str:
    """The checks that take time; what passed once passes again. Raises ConfigError that begins with the path."""
    schema: dict[str, Any] = json.loads(text)
    if lenient:
        schema = enforceable(schema)
    if "x-guidance" in schema:
        raise ConfigError(": the keyword 'x-guidance' is not part of JSON schema; remove it.")
    nodes = list(walk(schema, ""))
    for path, node in nodes[1:]:
        if has_identifier(node):
            raise ConfigError(f"{path}: an identifier within a schema moves what $ref means; remove it.")
    atoms = sum(_check_node(node, path) for path, node in nodes)
    if atoms > MOST_ATOMS:
        raise ConfigError(f": {atoms} atoms in all patterns when written out; a schema may have {MOST_ATOMS}.")
    check_references(schema)
    _try(schema, "", lenient)
    alone: dict[str, tuple[str, dict[str, Any]]] = {}
    for path, node in nodes[1:]:
        if any(keyword in node for keyword in _TRIED_ALONE):
            part = _standing_alone(node, schema)
            alone.setdefault(text_of(part), (path, part))
    if len(alone) > MOST_PATTERNS:
        raise ConfigError(f": {len(alone)} different patterns; a schema may have {MOST_PATTERNS}.")
    for path, part in alone.values():
        _try(part, path, lenient)
    return text_of(schema)


def _check_node(node: Mapping[str, Any], path: str) -> int:
    """The bounds of one schema; the atoms of its patterns. Raises ConfigError."""
    properties = node.get("properties")
    if isinstance(properties, Mapping) and len(properties) > MOST_PROPERTIES:
        raise ConfigError(f"{path}.properties: {len(properties)} of them; an object may have {MOST_PROPERTIES}.")
    patterns = patterns_of(node)
    large = next(filter(is_too_large, patterns), None)
    if large is not None:
        keyword = "pattern" if large == node.get("pattern") else "patternProperties"
        size = expanded_size(large)
        raise ConfigError(f"{path}.{keyword}: {size} atoms when written out; a pattern may have {MOST_PATTERN_ATOMS}.")
    multiple = node.get("multipleOf")
    if is_too_fine(multiple):
        raise ConfigError(f"{path}.multipleOf: {multiple} is too large or too fine to be enforced; at most 4 digits.")
    return sum(map(expanded_size, patterns))


def _standing_alone(node: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A part of the schema, with the definitions that it may refer to."""
    return {**{keyword: root[keyword] for keyword in _DEFINITIONS if keyword in root}, **node}


def _try(schema: Mapping[str, Any], path: str, lenient: bool) -> None:
    """Raise ConfigError when llguidance refuses `schema`, naming the innermost part found to be why."""
    complaint = try_out(text_of(dict(schema)), lenient)
    if not complaint:
        return
    places = children(schema, path)
    for _ in range(MOST_TRIES):
        where, child = next(places, ("", None))
        if child is None:
            break
        if try_out(text_of(_standing_alone(child, schema)), lenient) == complaint:
            path, places = where, children(child, where)
    raise ConfigError(f"{path}: this JSON schema cannot be enforced: {complaint}.")

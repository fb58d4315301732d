"""The JSON schema of a tool in the words that harmony's TypeScript has: anything else would be shown as `any`.

openai-harmony 0.0.8 (`json_schema_to_typescript` in its src/encoding.rs), and chat templates like it, know `type`, an
`enum` of texts, `properties`, `items`, `oneOf`, `nullable`, and comments. A list in `type` is written as it stands,
which is how literals and `null` are said.

$ref within the schema     what it leads to; where that leads back into itself, or too far: object, Array<any>, any
allOf                      one schema
anyOf                      oneOf; on one line where all of it are plain types
const, enum                literals
type: [object, string]     a oneOf of each, where they have properties or items
null, nullable             `| null`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_dist.harmony.grammar_walk import resolve
from gptoss_dist.harmony.tool_types import NULL, in_one_line, literals, or_null

MOST_CHARACTERS = 32_768
"""Of what references lead to, and of what the alternatives of a union share, each time that it is written out."""
MOST_LEVELS = 12
"""Schemas within schemas, below which no reference is followed: its text would be little but indentation."""

Schema = dict[str, Any]

_COMMENTS = ("title", "description", "default", "examples")
_SHAPE = ("type", "enum", "const", "properties", "items", "$ref", "anyOf", "oneOf", "allOf")
_KNOWN = (*_COMMENTS, "type", "enum", "nullable", "properties", "required", "items", "additionalProperties")


def readable(schema: Mapping[str, Any]) -> Schema:
    """The schema so that harmony shows all of its types; of what has no type, only the comments are kept."""
    return _Reader(schema).read(schema, ())


class _Reader:
    """Follows the references of one schema, `root`."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MOST_CHARACTERS

    def read(self, node: Mapping[str, Any], followed: tuple[str, ...], level: int = 0) -> Schema:
        """A schema in harmony's words. followed: the references that led here."""
        flat, followed = self._flat(node, followed, level)
        common, variants = _variants(flat)
        if not variants:
            return self._single(flat, followed, level + 1)
        if not self._affords(common, len(variants)):
            common = {}
        return _union(flat, [self.read(_merged(common, one), followed, level + 1) for one in variants])

    def _affords(self, schema: Mapping[str, Any], times: int = 1) -> bool:
        """Whether a schema may be written out so often, beside where it stands."""
        if self._left > 0:
            self._left -= len(json.dumps(schema)) * times
        return self._left > 0

    def _flat(self, node: Mapping[str, Any], followed: tuple[str, ...], level: int) -> tuple[Schema, tuple[str, ...]]:
        """The schema without $ref and allOf, and the references that lead to what is in it."""
        parts: list[Mapping[str, Any]] = []
        reference = node.get("$ref")
        target = resolve(self._root, reference) if isinstance(reference, str) else None
        if isinstance(reference, str) and isinstance(target, Mapping):
            is_near = reference not in followed and max(level, len(followed)) <= MOST_LEVELS
            if is_near and self._affords(target):
                part, followed = self._flat(target, (*followed, reference), level)
                parts.append(part)
            else:
                parts.append(_outline(target))
        all_of = node.get("allOf")
        for one in all_of if isinstance(all_of, list) else ():
            if isinstance(one, Mapping):
                part, followed = self._flat(one, followed, level)
                parts.append(part)
        flat: Schema = {}
        parts.append({key: value for key, value in node.items() if key not in ("$ref", "allOf")})
        for each in parts:
            flat = _merged(flat, each)
        return flat, followed

    def _single(self, flat: Schema, followed: tuple[str, ...], level: int) -> Schema:
        """A schema of one type."""
        shown = {key: flat[key] for key in _KNOWN if key in flat}
        properties, items = flat.get("properties"), flat.get("items")
        if "const" in flat or (isinstance(flat.get("enum"), list) and flat["enum"]):
            shown.pop("enum", None)
            shown |= literals(flat)
        elif flat.get("type") == "null":
            shown |= NULL
        elif "type" not in flat and isinstance(properties, Mapping):
            shown["type"] = "object"
        elif "type" not in flat and isinstance(items, Mapping):
            shown["type"] = "array"
        if isinstance(properties, Mapping):
            shown["properties"] = {
                name: self.read(one, followed, level) if isinstance(one, Mapping) else one
                for name, one in properties.items()
            }
        if isinstance(items, Mapping):
            del shown["items"]
            shown |= _of_items(self.read(items, followed, level), shown.get("type"))
        return or_null(shown, _COMMENTS) if shown.pop("nullable", None) is True else shown


def _outline(target: Mapping[str, Any]) -> Schema:
    """What is said of a schema that is not written out again."""
    if target.get("type") == "array":
        return {"type": "array"}
    return {"type": ["object"]} if target.get("type") == "object" or "properties" in target else {}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> Schema:
    """Both schemas at once; of what both say, the second's, but the properties of both."""
    both = {**first, **second}
    one, other = first.get("properties"), second.get("properties")
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        both["properties"] = {**one, **other}
    one, other = first.get("required"), second.get("required")
    if isinstance(one, list) and isinstance(other, list):
        both["required"] = [*one, *other]
    return both


def _variants(flat: Mapping[str, Any]) -> tuple[Schema, list[Mapping[str, Any]]]:
    """(what all alternatives of a union have in common, what is each one's own); none for a schema of one type."""
    for keyword in ("anyOf", "oneOf"):
        given = flat.get(keyword)
        given = [one if isinstance(one, Mapping) else {} for one in given] if isinstance(given, list) else []
        if any(key in one for one in given for key in _SHAPE):  # others only say what has to be there
            return {key: value for key, value in flat.items() if key not in (keyword, "nullable", *_COMMENTS)}, given
    kinds = flat.get("type")
    if not isinstance(kinds, list) or "enum" in flat or "const" in flat:
        return {}, []
    if not any(kind in kinds and key in flat for kind, key in (("object", "properties"), ("array", "items"))):
        return {}, []
    common = {key: value for key, value in flat.items() if key not in ("type", "nullable", *_COMMENTS)}
    return common, [{"type": kind} for kind in kinds if isinstance(kind, str)]


def _union(flat: Mapping[str, Any], variants: Sequence[Schema]) -> Schema:
    """The variants, which are in harmony's words, and the comments of the whole."""
    comments = {key: flat[key] for key in _COMMENTS if key in flat}
    others = [one for one in variants if one.get("type") != NULL["type"]]
    has_null = len(others) < len(variants) or flat.get("nullable") is True
    if len(others) == 1 and (has_null or "oneOf" not in flat):
        whole = {**others[0], **comments}
    elif "oneOf" not in flat and all(in_one_line(one) for one in others):
        whole = {"type": list(dict.fromkeys(text for one in others for text in in_one_line(one))), **comments}
    else:
        whole = {"oneOf": others, **comments}
    return or_null(whole, _COMMENTS) if has_null else whole


def _of_items(items: Schema, kind: Any) -> Schema:
    """`items`, or the `type` of an array whose items are a union: harmony writes no brackets around one."""
    texts = in_one_line(items)
    if kind == "array" and isinstance(items.get("type"), list) and len(texts) > 1:
        return {"type": [f"({' | '.join(texts)})[]"]}
    if items.get("nullable") is True:  # which harmony reads of properties and variants only
        items = {"oneOf": [{key: value for key, value in items.items() if key != "nullable"}, NULL]}
    return {"items": items}

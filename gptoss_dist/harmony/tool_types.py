"""Small pieces of a schema in harmony's words: literals, `null`, and what one line can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

NULL: Schema = {"type": ["null"]}
_PLAIN = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def literals(schema: Mapping[str, Any]) -> Schema:
    """`type`, and `enum` for texts, of a schema with `const` or an `enum` of at least one value."""
    values = [schema["const"]] if "const" in schema else schema["enum"]
    kind = schema.get("type")
    if kind == "string" and "const" not in schema:
        return {"type": kind, "enum": values}
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values):
        return {"type": "string", "enum": texts}
    if texts and len(texts) == len(values) - 1 and None in values:
        return {"type": "string", "enum": texts, "nullable": True}
    return {"type": [json.dumps(value, ensure_ascii=False) for value in values]}


def or_null(schema: Schema, comments: Sequence[str]) -> Schema:
    """The schema, or null; `comments` are the keywords that belong to the whole."""
    kind = schema.get("type")
    if "oneOf" in schema:
        return schema if NULL in schema["oneOf"] else {**schema, "oneOf": [*schema["oneOf"], NULL]}
    if isinstance(kind, list) or (isinstance(kind, str) and kind in _PLAIN and not schema.get("enum")):
        kinds = kind if isinstance(kind, list) else [kind]
        return {**schema, "type": kinds if "null" in kinds else [*kinds, "null"]}
    type_alone = {key: value for key, value in schema.items() if key not in comments}
    if "null" not in json.dumps(type_alone):  # harmony takes any `null` within a type for its own
        return {**schema, "nullable": True}
    return {"oneOf": [type_alone, NULL], **{key: schema[key] for key in comments if key in schema}}


def in_one_line(schema: Mapping[str, Any]) -> list[str]:
    """The alternatives of a type as TypeScript; none where it needs lines, or a comment, of its own."""
    kind, items = schema.get("type"), schema.get("items")
    if "description" in schema or "default" in schema or "oneOf" in schema:
        return []
    if isinstance(kind, list):
        texts = [_PLAIN.get(one, one) for one in kind if isinstance(one, str)]
    elif kind == "string" and schema.get("enum"):
        texts = [f'"{value}"' for value in schema["enum"] if isinstance(value, str)]
    elif kind == "array":
        inner = in_one_line(items) if isinstance(items, Mapping) else []
        whole = f"({' | '.join(inner)})" if len(inner) > 1 else "".join(inner)
        texts = [f"{whole}[]"] if whole else [] if "items" in schema else ["Array<any>"]
    else:
        texts = [_PLAIN[kind]] if isinstance(kind, str) and kind in _PLAIN else []
    return [*texts, "null"] if texts and schema.get("nullable") is True else texts

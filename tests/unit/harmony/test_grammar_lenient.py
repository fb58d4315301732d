from __future__ import annotations

import json

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.grammar_bounds import MOST_PATTERNS
from gptoss_dist.harmony.grammar_json import JsonText
from gptoss_dist.harmony.grammar_schema import check_schema


def of_a(schema, **more):
    """An object whose property `a` is of the schema and stands between two that can be enforced."""
    properties = {"first": {"const": 1}, "a": schema, "last": {"const": 2}}
    return {"type": "object", "properties": properties, "required": ["first", "a", "last"], **more}


def fits(encoding, schema, value) -> bool:
    """Whether the lenient grammar lets the value be written."""
    text = JsonText(check_schema(schema, "schema", lenient=True), lenient=True)
    return all(map(text.accept, encoding.encode(json.dumps(value)))) and text.is_whole()


UNKNOWN = {
    "not": ({"type": "string", "not": {"const": "x"}}, "x", 5),
    "if": ({"type": "string", "if": {"minLength": 3}, "then": {"pattern": "^(?=a)"}}, "bcde", 5),
    "unique": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 1], ["x"]),
    "format": ({"type": "string", "format": "zip", "maxLength": 3}, "abc", "abcd"),
    "look-around": ({"type": "string", "pattern": "^(?!a)b$", "maxLength": 3}, "abc", "abcd"),
    "a group again": ({"type": "string", "pattern": r"^(a)\1$"}, "b", 5),
    "a large pattern": ({"type": "string", "pattern": "^(a{1000}){1000}$"}, "b", 5),
    "a large multiple": ({"type": "integer", "multipleOf": 9_999_991}, 5, "x"),
    "names": (
        {"type": "object", "patternProperties": {"^(?!x)a": {}, "^n": {"type": "null"}}, "additionalProperties": False},
        {"xa": 1, "n": None},
        {"n": 1},
    ),
    "a reference elsewhere": ({"$ref": "https://example.com/schema.json", "maxLength": 3}, [1], "abcd"),
    "a reference to an anchor": ({"$ref": "#name", "type": "string"}, "x", 5),
    "overlapping": ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "x", None),
    "an identifier": ({"$id": "https://example.com/b", "type": "array", "items": {"$ref": "#"}}, [5], 5),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_enforced_is_let_through_and_the_rest_is_enforced(encoding, name):
    schema, let_through, refused = UNKNOWN[name]
    with pytest.raises(ConfigError):
        check_schema(of_a(schema), "schema")
    assert fits(encoding, of_a(schema), {"first": 1, "a": let_through, "last": 2})
    assert not fits(encoding, of_a(schema), {"first": 1, "a": let_through, "last": 3})
    if refused is not None:
        assert not fits(encoding, of_a(schema), {"first": 1, "a": refused, "last": 2})


def test_references_within_the_schema_are_followed(encoding):
    node = {"$id": "n", "type": "object", "properties": {"next": {"$ref": "n"}, "value": {"type": "integer"}}}
    schema = {"$defs": {"node": node}, "$ref": "#/$defs/node", "$schema": "https://example.com/own", "x-guidance": {}}
    assert fits(encoding, schema, {"next": "free", "value": 3})
    assert not fits(encoding, schema, {"next": "free", "value": "x"})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (of_a({"type": "objekt"}), r"^schema\.properties\.a: .*objekt"),
        (of_a(5), r"^schema\.properties\.a: expected a JSON schema"),
        (of_a({"type": "string", "pattern": 5}), "pattern"),
        (of_a({"minimum": 5, "maximum": 3, "type": "integer"}), "Unsatisfiable"),
        ({"anyOf": [{"pattern": f"^(?!{i})"} for i in range(MOST_PATTERNS + 1)]}, "^schema: 201 different patterns"),
    ],
)
def test_what_is_wrong_is_refused(schema, message):
    with pytest.raises(ConfigError, match=message):
        check_schema(schema, "schema", lenient=True)

from __future__ import annotations

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.harmony.grammar_bounds import MOST_PATTERN_ATOMS
from gptoss_dist.harmony.grammar_pattern import expanded_size
from gptoss_dist.harmony.grammar_schema import MOST_PROPERTIES, check_schema


def nested(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(length, defs="$defs"):
    """Definitions of which each refers to the next."""
    links = {f"a{i}": {"type": "object", "properties": {"x": {"$ref": f"#/{defs}/a{i + 1}"}}} for i in range(length)}
    return {"$defs": {**links, f"a{length}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def within(schema):
    return {"type": "object", "properties": {"p": {"type": "array", "items": {"anyOf": [{"type": "null"}, schema]}}}}


EXCLUDING = {"allOf": [{"type": "string", "pattern": f"^(.{{{p}}})*$"} for p in (2, 3, 5, 7, 11, 13, 17)]}
INNER = r"^schema\.properties\.p\.items\.anyOf\[1\]"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "^schema: expected a JSON schema, an object; found list"),
        (True, "found bool"),
        ({"type": "object", "properties": {"a": 3}}, r"^schema\.properties\.a: expected a JSON schema.* found int"),
        ({"const": float("nan")}, "not JSON"),
        ({"const": object()}, "not JSON"),
        ({"const": "\ud83d"}, "half of a surrogate pair"),
        ({"const": " " * 60_000}, "bytes in a row"),
        ({"enum": ["x y" * 50_000]}, "characters; a schema may have"),
        ({"type": "string", "x-guidance": {"lenient": True}}, "x-guidance"),
        (within({"type": "objekt"}), f"{INNER}: .*Invalid type: objekt"),
        (within({"not": {}}), rf"{INNER}: .*Unimplemented keys: \[.not.\]"),
        (within({"type": "string", "format": "zip"}), f"{INNER}: .*Unknown format: zip"),
        (within({"type": "string", "pattern": "(?=a)b"}), f"{INNER}: .*look-around"),
        (within({"type": "string", "pattern": "(["}), f"{INNER}: .*unclosed character class"),
        (within({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}), rf"{INNER}\.pattern: .* atoms"),
        (within({"type": "integer", "multipleOf": True}), "f64"),
        (within({"type": "integer", "multipleOf": 9_999_991}), rf"{INNER}\.multipleOf"),
        (within(EXCLUDING), INNER),
        (within({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), f"{INNER}: .*use anyOf"),
        ({"anyOf": [{"pattern": f"^a{{1900}}{i}"} for i in range(6)]}, "^schema: .* atoms in all patterns"),
        ({"anyOf": [{"pattern": f"^a{i}"} for i in range(201)]}, "^schema: 201 different patterns"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "http://localhost/schema"}, "leads nowhere"),
        ({"$defs": {"a": {"$anchor": "b"}}, "$ref": "#b"}, "leads nowhere"),
        (within({"$id": "http://localhost/schema"}), f"{INNER}: an identifier"),
        ({"$ref": "#"}, "leads? only to itself"),
        (nested(60), "nested more than 100 levels"),
        (nested(5_000), "nested more than 100 levels"),
        (chain(1_500), "schemas deep; use fewer"),
        (chain(1_500, "%24defs"), "schemas deep; use fewer"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(501)}}, "an object may have 500"),
    ],
)
def test_refused_with_the_path(schema, message):
    with pytest.raises(ConfigError, match=message):
        check_schema(schema, "schema")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(40),
        chain(100),
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(MOST_PROPERTIES)}},
        {"type": "string", "pattern": f"^(.{{{MOST_PATTERN_ATOMS // 2 - 2}}}){{2}}$"},
        {"type": "string", "minLength": 1_000_000},
        {"type": "array", "items": {}, "maxItems": 1_000_000},
        {
            "title": "t",
            "description": "d",
            "default": 1,
            "examples": [1],
            "$schema": "http://json-schema.org/draft-07/schema#",
            "my own": 2,
        },
    ],
)
def test_allowed(schema):
    check_schema(schema, "schema")


def test_lenient_leaves_out_what_is_unknown_and_nothing_else():
    check_schema({"not": {"type": "string"}, "format": "zip"}, "schema", lenient=True)
    with pytest.raises(ConfigError, match="objekt"):
        check_schema({"type": "objekt"}, "schema", lenient=True)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}b", 6),
        ("a{7,}", 7),
        ("(ab){10}", 20),
        ("((ab){10}c?){3}", 63),
        (r"\d{4}-\p{Lu}{2}", 7),
        (r"[a-z\]{9}]{4}", 4),
        ("[]{9}]{4}", 4),
        ("[^a[b-c]]{2}", 2),
        (r"\{9}", 3),
        ("a|b{3}", 5),
        ("(a{1000}){1000}", 10**6),
        ("a{99999999999999999999}", 10**12),
        (")(", 1),
    ],
)
def test_size_of_a_pattern(pattern, size):
    assert expanded_size(pattern) == size

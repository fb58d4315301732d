"""What the model is shown of a tool's schema: read in the prompt, as openai-harmony writes it."""

from __future__ import annotations

import random
import time

import pytest

from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.tool_schema import MOST_CHARACTERS

PLACE = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


@pytest.fixture
def shown(encoding):
    """The parameters' type as TypeScript, in one line."""

    def shown(parameters):
        options = PromptOptions(tools=(tool_of(parameters),))
        text = encoding.decode(render([{"role": "user", "content": "?"}], options))
        return " ".join(text.split("type f = (_: ")[1].split(") => any;\n\n} // namespace")[0].split())

    return shown


def tool_of(parameters):
    return {"type": "function", "function": {"name": "f", "description": "D", "parameters": parameters}}


def of_a(schema, **more):
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "#/$defs/place"}, "{ x: number, }"),
        ({"$ref": "#/$defs/alias"}, "{ x: number, }"),
        ({"type": "array", "items": {"$ref": "#/$defs/place"}}, "{ x: number, }[]"),
        ({"$ref": "#/$defs/a~1b%25"}, "boolean"),
        ({"allOf": [{"$ref": "#/$defs/place"}, {"properties": {"y": {"type": "string"}}, "required": ["y"]}]},
            "{ x: number, y: string, }"),
        ({"$ref": "https://example.com/x"}, "any"),
        ({"$ref": "#/$defs/missing"}, "any"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "string | number"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, "string | null"),
        ({"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]}, "{ x: number, } | null"),
        ({"anyOf": [{"$ref": "#/$defs/place"}, {"type": "string"}]}, "| { x: number, } | string"),
        ({"oneOf": [{"$ref": "#/$defs/place"}, {"const": 0}]}, "| { x: number, } | 0"),
        ({"anyOf": [{"type": "array", "items": {"type": ["string", "null"]}}, {"const": "all"}]},
            '(string | null)[] | "all"'),
        ({**PLACE, "anyOf": [{"required": ["x"]}, {"required": ["y"]}]}, "{ x: number, }"),
        ({**PLACE, "oneOf": [{"properties": {"y": {"type": "null"}}}, {"properties": {"z": {"type": "string"}}}]},
            "| { x: number, y?: null, } | { x: number, z?: string, }"),
        ({"const": "x"}, '"x"'),
        ({"const": 1.5}, "1.5"),
        ({"const": None}, "null"),
        ({"const": False}, "false"),
        ({"const": {"k": ["é"]}}, '{"k": ["é"]}'),
        ({"enum": ["x", "y"]}, '"x" | "y"'),
        ({"enum": ["x", None]}, '"x" | null'),
        ({"enum": ["x", 1, None]}, '"x" | 1 | null'),
        ({"type": "integer", "enum": [1, 2]}, "1 | 2"),
        ({"type": ["string", "null"], "enum": ["x", "y", None]}, '"x" | "y" | null'),
        ({"type": ["string", "null"]}, "string | null"),
        ({"type": ["object", "null"], "properties": {"y": {"type": "string"}}}, "{ y?: string, } | null"),
        ({"type": ["object", "null"], "properties": {"y": {"type": ["string", "null"]}}},
            "| { y?: string | null, } | null"),
        ({"type": ["array", "string"], "items": {"type": "string"}}, "string[] | string"),
        ({"type": "array", "items": {"type": "object", "properties": {}, "nullable": True}}, "| { } | null[]"),
        ({"type": "string", "nullable": True}, "string | null"),
        ({"type": "null"}, "null"),
        ({"properties": {"y": {"type": "string"}}}, "{ y?: string, }"),
        ({"items": {"type": "string"}}, "string[]"),
    ],
)  # fmt: skip
def test_every_type_is_shown(shown, schema, text):
    definitions = {"place": PLACE, "alias": {"$ref": "#/$defs/place"}, "a/b%": {"type": "boolean"}}
    inner = shown(of_a(schema, **{"$defs": definitions})).removeprefix("{ a: ").removesuffix(" }")
    assert inner.removesuffix(",").rstrip() == text


def test_comments_stay_with_what_they_are_about(shown):
    colour = {"type": "string", "enum": ["red", "green"], "description": "Any."}
    own = {"$ref": "#/$defs/colour", "description": "Mine.", "default": "red"}
    assert shown(of_a(own, **{"$defs": {"colour": colour}})) == '{ // Mine. a: "red" | "green", // default: red }'
    either = {"anyOf": [{"type": "string", "description": "By name."}, {"type": "null"}], "default": None}
    assert shown(of_a(either)) == "{ // By name. a: string | null, // default: null }"


def test_parameters_may_be_a_reference_or_a_union_themselves(shown):
    assert shown({"$defs": {"p": PLACE}, "$ref": "#/$defs/p"}) == "{ x: number, }"
    assert shown({"anyOf": [PLACE, of_a({"const": 1})]}) == "| { x: number, } | { a: 1, }"


def test_what_refers_to_itself_is_written_out_once(shown):
    node = {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "list": {"$ref": "#/$defs/list"},
        },
    }
    nodes = {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/list"}]}}
    once = "{ children?: object[], next?: object | null, list?: (object | Array<any>)[], }"
    assert shown(of_a({"$ref": "#/$defs/node"}, **{"$defs": {"node": node, "list": nodes}})) == f"{{ a: {once}, }}"
    assert shown(of_a({"$ref": "#"})) == "{ a: { a: object, }, }"
    assert shown(of_a({"$ref": "#/properties/a"})) == "{ a: any, }"
    assert shown(of_a({"allOf": [{"$ref": "#/properties/a"}]})) == "{ a: any, }"


def test_references_are_bounded_in_size_and_in_depth(encoding):
    doubled = {
        f"d{i}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/d{i + 1}"} for key in "ab"}}
        for i in range(60)
    }
    chained = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(5000)}
    direct = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(5000)}
    for definitions in (doubled, chained, direct):
        started = time.monotonic()
        options = PromptOptions(tools=(tool_of(of_a({"$ref": "#/$defs/d0"}, **{"$defs": definitions})),))
        text = encoding.decode(render([{"role": "user", "content": "?"}], options))
        assert len(text) < 5 * MOST_CHARACTERS
        assert time.monotonic() - started < 20


def test_unions_are_bounded_too(encoding):
    many = [{"type": "object", "properties": {f"p{i}": {"type": "string"}}} for i in range(1500)]
    properties = {f"q{i}": {"type": "string"} for i in range(1500)}
    started = time.monotonic()
    for parameters in ({"anyOf": many, "oneOf": many}, {"properties": properties, "anyOf": many}):
        options = PromptOptions(tools=(tool_of(parameters),))
        text = encoding.decode(render([{"role": "user", "content": "?"}], options))
        assert len(text) < 5 * MOST_CHARACTERS
    assert time.monotonic() - started < 20


def odd_value(rng, depth=0):
    kinds = [None, True, False, 0, 1.5, "", "string", "object", "null", "array", "#", "#/$defs/a", "#/anyOf/0", [], {}]
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(kinds)
    if rng.random() < 0.3:
        return [odd_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    keys = ["type", "enum", "const", "properties", "required", "items", "$ref", "anyOf", "oneOf", "allOf", "$defs", "a"]
    keys += ["nullable", "description", "default", "title", "examples"]
    return {key: odd_value(rng, depth + 1) for key in rng.sample(keys, rng.randint(0, 5))}


def test_anything_at_all_is_shown(shown):
    rng = random.Random(11)
    for _ in range(1500):
        assert shown(of_a(odd_value(rng), **{"$defs": {"a": odd_value(rng)}})).startswith("{")

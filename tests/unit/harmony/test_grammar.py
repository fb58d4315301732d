from __future__ import annotations

import json
import pickle
import random
from typing import Literal

import jsonschema
import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field

from gptoss_dist.errors import ConfigError, GptOssDistError, PromptError
from gptoss_dist.harmony.conversation import PromptOptions, render
from gptoss_dist.harmony.grammar import constraint_for, validate_tools
from gptoss_dist.harmony.stream import Reader

FIRST_CONTROL, VOCABULARY = 199998, 201088
RETURN, CONSTRAIN, CHANNEL, START, END, MESSAGE, CALL = 200002, 200003, 200005, 200006, 200007, 200008, 200012
CONTROL = range(FIRST_CONTROL, VOCABULARY)
ENDS = {RETURN, END, CALL}


class Address(BaseModel):
    model_config = ConfigDict(extra="forbid")
    street: str
    zip: str = Field(pattern=r"^\d{5}$")


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=20)
    age: int = Field(ge=0, le=130)
    home: Address | None = None
    tags: list[Literal["a", "b", "日本"]] = Field(default_factory=list, max_length=3)


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float = Field(gt=0)


class Square(BaseModel):
    kind: Literal["square"]
    side: float


class Drawing(BaseModel):
    shapes: list[Circle | Square] = Field(min_length=1, max_length=3)


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = {
    "nested": {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -5, "maximum": 17},
        "minItems": 2,
        "maxItems": 5,
    },
    "enum": {
        "type": "object",
        "properties": {"c": {"enum": ["ro t", 'gr"ün', 3, None, {"x": [1]}]}},
        "required": ["c"],
    },
    "tree": TREE,
    "bounds": {
        "type": "object",
        "properties": {"p": {"type": "number", "minimum": -0.5, "exclusiveMaximum": 2.25}, "q": {"multipleOf": 7}},
        "required": ["p"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {name: {"type": ["string", "null"], "maxLength": 4} for name in "abcd"},
        "additionalProperties": False,
    },
    "unicode": {
        "type": "object",
        "properties": {"ключ 鍵": {"type": "string", "maxLength": 12}, 'q"\\': {"const": "é\n👩‍👩‍👧"}},
        "required": ["ключ 鍵", 'q"\\'],
        "additionalProperties": False,
    },
    "any of": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "array", "items": {"type": "null"}}]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "date": {"type": "object", "properties": {"at": {"type": "string", "format": "date"}}, "required": ["at"]},
    "number": {"type": "integer"},
    "control": {
        "type": "object",
        "properties": {"<|end|>": {"const": "<|return|><|channel|>"}},
        "required": ["<|end|>"],
    },
    "person": Person.model_json_schema(),
    "drawing": Drawing.model_json_schema(),
}


def tool(name, parameters=None, strict=None):
    function = {"name": name} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function | ({} if strict is None else {"strict": strict})}


WEATHER = tool("get_weather", SCHEMAS["person"], strict=True)
TREES = tool("get.trees-2", TREE)
NOTHING = tool("get", None, strict=True)
TOOLS = [WEATHER, TREES, NOTHING]
PARAMETERS = {"get_weather": SCHEMAS["person"], "get.trees-2": TREE, "get": {"type": "object", "maxProperties": 0}}


def json_schema(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


@pytest.fixture(scope="module")
def prompt():
    options = PromptOptions(tools=tuple(TOOLS))
    return render([{"role": "user", "content": "Say something."}], options)


@pytest.fixture(scope="module")
def pieces(encoding):
    """Tokens that bring a text to its end."""
    return [encoding.encode(text)[0] for text in ('"}', '"]', "}", "]", '"', '":', "1", "0", "null")]


@pytest.fixture
def write(prompt, pieces):
    """Write a turn by tokens drawn at random from the allowed ones, with a bias that lets texts end."""

    def write(constraint, seed, longest=1500):
        chance = random.Random(seed)
        state = constraint.start(prompt)
        tokens = []
        while not state.finished:
            assert len(tokens) < longest, "the turn does not end"
            mask = state.allowed()
            token = draw(mask, chance, hurry=len(tokens) > 120)
            assert mask[token]
            state.accept(token)
            tokens.append(token)
        return tokens

    def draw(mask, chance, hurry):
        wanted = [token for token in (*sorted(ENDS - {END}), END) if mask[token]]
        if wanted and chance.random() < (0.9 if hurry else 0.25):
            return chance.choice(wanted)
        wanted = [token for token in pieces if mask[token]]
        if wanted and chance.random() < (0.95 if hurry else 0.4):
            return chance.choice(wanted)
        allowed = mask.nonzero().flatten()
        return int(allowed[chance.randrange(len(allowed))])

    return write


def read(tokens):
    reader = Reader()
    for token in tokens:
        reader.feed(token)
    return reader.finish()


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_is_json_of_its_schema(write, name):
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    constraint = constraint_for(json_schema(SCHEMAS[name], strict=True))
    for seed in range(5):
        tokens = write(constraint, seed)
        answer = read(tokens)
        assert answer.final is not None, seed
        validator.validate(json.loads(answer.final))
        assert answer.tool_calls == ()
        assert answer.commentary is None
        assert tokens[-1] == RETURN
        assert answer.complete


def test_a_json_object_is_any_object(write):
    constraint = constraint_for({"type": "json_object"})
    assert all(isinstance(json.loads(read(write(constraint, seed)).final), dict) for seed in range(8))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("choice", ["required", "get_weather", "get.trees-2", "get"])
def test_a_call_is_made_and_follows_its_schema(write, choice, parallel):
    tool_choice = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    constraint = constraint_for(tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=parallel)
    called = set()
    for seed in range(8):
        tokens = write(constraint, seed)
        answer = read(tokens)
        assert answer.final is None
        assert answer.commentary is None
        assert answer.tool_calls
        assert parallel or len(answer.tool_calls) == 1
        assert tokens[-1] == CALL
        for call in answer.tool_calls:
            jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])
            called.add(call.name)
    assert len(called) > 1 if choice == "required" else called == {choice}


def test_strict_tools_bind_their_own_calls_only(write):
    constraint = constraint_for(tools=TOOLS, tool_choice="auto")
    calls = [call for seed in range(60) for call in read(write(constraint, seed)).tool_calls]
    assert {call.name for call in calls} == set(PARAMETERS)
    for call in calls:
        if call.name != "get.trees-2":
            jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])


def test_auto_ends_in_a_call_or_in_an_answer_of_the_format(write):
    constraint = constraint_for(json_schema(SCHEMAS["map"]), TOOLS)
    answers = [read(write(constraint, seed)) for seed in range(25)]
    assert any(answer.tool_calls for answer in answers)
    finals = [answer.final for answer in answers if answer.final is not None]
    assert finals
    for final in finals:
        jsonschema.validate(json.loads(final), SCHEMAS["map"])


def test_none_never_calls(write):
    constraint = constraint_for(tools=TOOLS, tool_choice="none")
    for seed in range(10):
        answer = read(write(constraint, seed))
        assert answer.tool_calls == ()
        assert answer.final is not None


def test_parallel_calls_can_follow_each_other(encoding, prompt):
    call = "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}"
    tokens = encoding.encode(f"{call}<|end|><|start|>assistant{call}<|call|>", allowed_special="all")
    state = constraint_for(tools=TOOLS, tool_choice="required").start(prompt)
    for token in tokens:
        state.accept(token)
    assert state.finished
    assert [(call.name, call.arguments) for call in read(tokens).tool_calls] == [("get", "{}")] * 2


def control_tokens(state):
    allowed = state.allowed()
    assert allowed.dtype == torch.bool
    assert allowed.shape == (VOCABULARY,)
    return {token for token in CONTROL if allowed[token]}


FORMAT = json_schema(SCHEMAS["nested"])
STRUCTURES = {
    "format": (
        {"response_format": FORMAT},
        [
            ("", {CHANNEL}),
            ("<|channel|>", set()),
            ("ana", set()),
            ("lysis", {MESSAGE}),
            ("<|message|>", {END}),
            (" Let me <|think> to=functions.get_weather {", {END}),
            ("<|end|>", {START}),
            ("<|start|>", set()),
            ("assistant", {CHANNEL}),
            ("<|channel|>final", {MESSAGE}),
            (" ", {CONSTRAIN}),
            ("<|constrain|>", set()),
            ("json", {MESSAGE}),
            ("<|message|>", set()),
            ('{"a":{"b":true', set()),
            ("}", set()),
            ("}", {RETURN}),
            ("<|return|>", {RETURN, CALL}),
        ],
    ),
    "required": (
        {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        [
            ("<|channel|>commentary", set()),
            (" to=functions.get", {CONSTRAIN, MESSAGE}),
            ("_weather", {CONSTRAIN, MESSAGE}),
            (" ", {CONSTRAIN}),
            ("<|constrain|>json<|message|>", set()),
            ('{"name": "Zoë"', set()),
            (',\n    "age"', set()),
            (": 7 }", {CALL}),
            ("<|call|>", {RETURN, CALL}),
        ],
    ),
    "recipient first": (
        {"tools": TOOLS, "tool_choice": "required"},
        [
            (" to=functions.get.trees-2", {CHANNEL}),
            ("<|channel|>commentary json<|message|>", set()),
            ('{"value": 3, "children": []}', {CALL, END}),
            ("<|end|>", {START}),
            ("<|start|>assistant", {CHANNEL}),
        ],
    ),
    "none": (
        {"tools": TOOLS, "tool_choice": "none"},
        [("<|channel|>final", {MESSAGE}), ("<|message|>", {RETURN}), ("Hello.", {RETURN})],
    ),
    "auto": (
        {"tools": TOOLS},
        [
            ("<|channel|>commentary", {MESSAGE}),
            ("<|message|>Looking it up.", {END}),
            ("<|end|><|start|>assistant<|channel|>commentary to=functions.get.trees-2<|message|>{free", {END, CALL}),
        ],
    ),
    "built-in": (
        {"tools": TOOLS, "builtin_tools": ["python", "browser"]},
        [("<|channel|>analysis to=python", {CONSTRAIN, MESSAGE}), (" code<|message|>print(1)", {CALL})],
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_control_tokens_are_masked_and_refused(encoding, prompt, name):
    request, steps = STRUCTURES[name]
    state = constraint_for(**request).start(prompt)
    for text, expected in steps:
        for token in encoding.encode(text, allowed_special="all"):
            state.accept(token)
        assert control_tokens(state) == expected, text
        before = state.allowed().clone()
        for token in set(CONTROL) - expected:
            with pytest.raises(GptOssDistError, match=f"token {token} is not allowed"):
                state.accept(token)
        assert torch.equal(state.allowed(), before)


@pytest.mark.parametrize(
    ("request_fields", "opening"),
    [
        ({"tools": TOOLS, "tool_choice": "none"}, "<|channel|>commentary"),
        ({"tools": TOOLS, "tool_choice": "none"}, " to=functions.get"),
        ({"tool_choice": "none"}, "<|channel|>commentary to=functions.get"),
        ({"tool_choice": "none"}, "<|channel|>analysis to=python"),
        ({"tools": TOOLS, "tool_choice": "required"}, "<|channel|>final"),
        ({"tools": TOOLS, "tool_choice": "required"}, "<|channel|>commentary<|message|>"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get"}}},
            " to=functions.get_weather",
        ),
        ({"tools": TOOLS}, "<|channel|>commentary to=functions.unknown"),
        ({"tools": TOOLS}, "<|channel|>analysis to=python"),
        ({"response_format": FORMAT, "tools": TOOLS}, "<|channel|>commentary<|message|>"),
        ({"response_format": FORMAT}, '<|channel|>final<|message|>{"a": {"b": 1'),
        ({"response_format": FORMAT}, "<|channel|>final<|message|> {"),
        ({"response_format": FORMAT}, '<|channel|>final<|message|>{"a": {"b": true}} '),
        ({"response_format": FORMAT}, "<|channel|>final<|message|>{" + "\n" * 2),
        ({"response_format": FORMAT}, "<|channel|>final<|message|>{" + " " * 65),
    ],
)
def test_these_are_never_written(encoding, prompt, request_fields, opening):
    state = constraint_for(**request_fields).start(prompt)
    tokens = encoding.encode(opening, allowed_special="all")
    with pytest.raises(GptOssDistError, match="is not allowed"):
        list(map(state.accept, tokens))


@pytest.mark.parametrize("seed", range(3))
def test_reasoning_is_free(encoding, prompt, seed):
    state = constraint_for(FORMAT, TOOLS, "none").start(prompt)
    for token in encoding.encode("<|channel|>analysis<|message|>", allowed_special="all"):
        state.accept(token)
    allowed = state.allowed()
    assert allowed[:FIRST_CONTROL].all()
    for token in random.Random(seed).choices(range(FIRST_CONTROL), k=300):
        state.accept(token)
    assert torch.equal(state.allowed(), allowed)


def test_what_the_model_would_write_is_allowed_at_every_token(encoding, prompt):
    text = (
        "<|channel|>analysis<|message|>Need a tree.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.get.trees-2 <|constrain|>json<|message|>{\n  "value": 3,\n  "children": '
        '[\n    {"value": 4, "children": []}\n  ]\n}<|call|>'
    )
    state = constraint_for(tools=TOOLS, tool_choice="required").start(prompt)
    for token in encoding.encode(text, allowed_special="all"):
        assert state.allowed()[token], encoding.decode([token])
        state.accept(token)
    assert state.finished


def test_a_prompt_may_hold_the_beginning_of_the_answer(encoding, prompt):
    begun = encoding.encode('<|channel|>final<|message|>{"a": {', allowed_special="all")
    state = constraint_for(FORMAT).start([*prompt, *begun])
    state.accept(encoding.encode('"b')[0])
    with pytest.raises(GptOssDistError, match="JSON on channel final"):
        state.accept(encoding.encode("}")[0])
    with pytest.raises(ConfigError, match="open message"):
        constraint_for(FORMAT).start([*prompt, *begun, END, START])
    with pytest.raises(ConfigError, match="open message"):
        constraint_for(FORMAT).start([])


def test_a_schema_that_is_too_complex_further_on_stops_its_output_only(encoding, prompt, caplog):
    alternatives = [{"properties": {f"{i} {j}": {"type": "null"} for i in range(400)}} for j in range(12)]
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"anyOf": alternatives}},
        "required": ["a"],
    }
    state = constraint_for(json_schema(schema)).start(prompt)
    for token in encoding.encode('<|channel|>final<|message|>{"a": "x", "b"', allowed_special="all"):
        assert state.allowed()[token]
        state.accept(token)
    assert caplog.text == ""
    for token in encoding.encode(": {"):
        if state.allowed().any():
            state.accept(token)
    assert not state.allowed().any()
    assert "stops in the JSON on channel final" in caplog.text


def test_nothing_to_constrain():
    free = tool("f", {"type": "object", "properties": {"a": {"type": "string"}}})
    assert constraint_for() is None
    assert constraint_for({"type": "text"}) is None
    assert constraint_for(tools=[free]) is None


def test_it_travels_as_data(write):
    constraint = constraint_for(json_schema(SCHEMAS["person"]), TOOLS)
    write(constraint, 0)  # nothing that is compiled stays in it
    packed = pickle.dumps(constraint)
    texts = json.dumps([SCHEMAS["person"], SCHEMAS["person"]], ensure_ascii=False)
    assert len(packed) < len(texts) + 1500
    assert pickle.loads(packed) == constraint


def test_a_tool_that_is_not_strict_may_say_more_than_can_be_enforced(write):
    vague = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    constraint = constraint_for(tools=[tool("f", vague)], tool_choice="required")
    (call,) = read(write(constraint, 1)).tool_calls[:1]
    assert isinstance(json.loads(call.arguments)["a"], list)
    with pytest.raises(ConfigError, match=r"tools\[0\]\.function\.parameters\.properties\.a: .*uniqueItems"):
        constraint_for(tools=[tool("f", vague, strict=True)])


@pytest.mark.parametrize("strict", [{}, {"strict": None}, {"strict": False}])
def test_a_format_that_is_not_strict_may_say_more_than_can_be_enforced(write, strict):
    vague = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=x)"}}, "required": ["a"]}
    answer = read(write(constraint_for(json_schema({**vague, "dependentRequired": {}}, **strict)), 1))
    assert isinstance(json.loads(answer.final)["a"], str)
    with pytest.raises(ConfigError, match=r"schema\.properties\.a: .*look-around"):
        constraint_for(json_schema(vague, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": "json"}, "response_format: type is None"),
        ({"response_format": {"type": "xml"}}, "'xml'; use text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format: expected"),
        ({"response_format": json_schema([1])}, "json_schema.schema: expected a JSON schema, an object; found list"),
        ({"tool_choice": "required"}, "no tools to call"),
        ({"tool_choice": "maybe"}, "'maybe'; use auto, none, required or a function"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "no function 'g' among"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice: expected"),
        ({"tools": [tool("f", {"type": "array"}, strict=True)]}, r"tools\[0\]\.function\.parameters\.type: 'array'"),
        ({"tools": TOOLS, "builtin_tools": ["perl"]}, "'perl' is not one"),
    ],
)
def test_what_cannot_be_asked_for(fields, message):
    with pytest.raises(ConfigError, match=message):
        constraint_for(**fields)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"type": "function"}, "tools: expected a list, found dict"),
        ([{"type": "function"}], r"tools\[0\]: expected"),
        ([WEATHER, tool("a b")], r"tools\[1\]\.function\.name: 'a b'"),
        ([WEATHER, TREES, tool("get_weather")], r"tools\[2\]\.function\.name: 'get_weather' is tools\[0\] already"),
        ([tool("f", strict="yes")], r"tools\[0\]\.function\.strict: 'yes'"),
        ([tool("f", [])], r"tools\[0\]\.function\.parameters: expected"),
    ],
)
def test_malformed_tools_are_named(tools, message):
    with pytest.raises(PromptError, match=message):
        validate_tools(tools)

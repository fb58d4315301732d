"""What /v1/responses refuses, with OpenAI's error object; no malformed body is a 500."""

from __future__ import annotations

import json
import random

import httpx
import pytest
from live_server import serving

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
FORMAT = {"type": "json_schema", "name": "x", "schema": {"type": "object", "properties": {}}}


def user(*parts) -> dict:
    return {"input": [{"role": "user", "content": list(parts)}]}


CASES = {
    "no input": ({}, "input"),
    "input is a number": ({"input": 5}, None),
    "nothing at all": ({"input": []}, "input"),
    "an item is text": ({"input": ["hi"]}, "input.[0]"),
    "an unknown item": ({"input": [{"type": "dance"}]}, "input.[0].type"),
    "an item of nothing": ({"input": [{}]}, "input.[0].id"),
    "a screenshot": ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input.[0].type"),
    "no content": ({"input": [{"role": "user"}]}, "input.[0].content"),
    "an unknown role": ({"input": [{"role": "tool", "content": "x"}]}, "input.[0].role"),
    "an image": (user({"type": "input_image", "image_url": "data:"}), "input.[0].content.[0].type"),
    "a file": (user({"type": "input_text", "text": "a"}, {"type": "input_file"}), "input.[0].content.[1].type"),
    "a sound": (user({"type": "input_audio"}), "input.[0].content.[0].type"),
    "a part of another kind": (user("text"), "input.[0].content.[0].type"),
    "a part without text": (user({"type": "input_text"}), "input.[0].content.[0].text"),
    "half a character": ({"input": "\ud83d"}, "input.[0].content"),
    "half a character in an id": ({"input": [{"role": "user", "content": "x", "id": "\ud83d"}]}, "input.[0].id"),
    "half a character in the summary": (
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "\ud83d"}]}]},
        "input.[0].summary.[0].text",
    ),
    "half a character in metadata": ({"input": "x", "metadata": {"a": "\ud83d"}}, "metadata.a"),
    "half a character in a field that is repeated": ({"input": "x", "user": "\ud83d"}, "user"),
    "half a character in instructions": ({"input": "x", "instructions": "\ud83d"}, "instructions"),
    "an image as a result": (
        {"input": [CALL, {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]},
        "input.[1].output.[0].type",
    ),
    "a result of no call": ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.[0]"),
    "a call without an id": ({"input": [{**CALL, "call_id": None}]}, "input.[0].call_id"),
    "too long a run": ({"input": [*user({"type": "input_text", "text": " " * 60000})["input"]]}, "input.[0]"),
    "a summary of another kind": ({"input": [{"type": "reasoning", "summary": [{"type": "x"}]}]}, None),
    "a conversation": ({"input": "x", "conversation": "conv_1"}, "conversation"),
    "a prompt template": ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
    "several answers": ({"input": "x", "n": 2}, "n"),
    "web_search": ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.[0].type"),
    "code_interpreter": ({"input": "x", "tools": [TOOL, {"type": "code_interpreter"}]}, "tools.[1].type"),
    "mcp": ({"input": "x", "tools": [{"type": "mcp", "server_label": "a"}]}, "tools.[0].type"),
    "a tool of the other API": ({"input": "x", "tools": [{"type": "function", "function": TOOL}]}, "tools.[0].name"),
    "a name that is none": ({"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools.[0]"),
    "a tool twice": ({"input": "x", "tools": [TOOL, TOOL]}, None),
    "a schema that is none": (
        {"input": "x", "tools": [{**TOOL, "strict": True, "parameters": {"type": "object", "properties": 5}}]},
        "tools.[0]",
    ),
    "tool_choice without tools": ({"input": "x", "tool_choice": "required"}, "tool_choice"),
    "tool_choice of another": (
        {"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}},
        "tool_choice",
    ),
    "tool_choice of the other API": (
        {"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
    ),
    "tool_choice of a hosted tool": ({"input": "x", "tools": [TOOL], "tool_choice": {"type": "mcp"}}, "tool_choice"),
    "allowed tools that are not there": (
        {
            "input": "x",
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
        },
        "tool_choice.tools",
    ),
    "a format without a name": ({"input": "x", "text": {"format": {**FORMAT, "name": None}}}, "text.format.name"),
    "a format of the other API": (
        {"input": "x", "text": {"format": {"type": "json_schema", "json_schema": {}}}},
        "text.format.name",
    ),
    "an unknown format": ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
    "a wrong schema": ({"input": "x", "text": {"format": {**FORMAT, "schema": {"type": "king"}}}}, "text.format"),
    "effort": ({"input": "x", "reasoning": {"effort": "heroic"}}, "reasoning.effort"),
    "vLLM's schema": ({"input": "x", "structured_outputs": {"json": {}}}, "structured_outputs"),
    "verbosity": ({"input": "x", "text": {"verbosity": "loud"}}, "text.verbosity"),
    "truncation": ({"input": "x", "truncation": "some"}, "truncation"),
    "temperature": ({"input": "x", "temperature": 3}, "temperature"),
    "max_output_tokens": ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    "max_output_tokens above the context": ({"input": "x", "max_output_tokens": 9000}, "input"),
    "top_logprobs": ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
    "metadata with too many": ({"input": "x", "metadata": {str(number): "" for number in range(17)}}, "metadata"),
    "metadata that is long": ({"input": "x", "metadata": {"a": "x" * 513}}, "metadata.a"),
    "metadata that is no text": ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
}  # fmt: skip


def post(server, body) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/responses", content=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=30
    )


def check_error(answer: httpx.Response, status: int, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(server, case: str, stream: bool):
    body, param = CASES[case]
    check_error(post(server, {**body, "stream": stream}), 400, param)


def test_what_a_wrong_message_is_told(server):
    body = {
        "input": [{"role": "user", "content": "hi"}, {"type": "function_call_output", "call_id": "c", "output": ""}]
    }
    message = post(server, body).json()["error"]["message"]
    assert message.startswith("input[1] (tool): no earlier")
    assert "messages" not in message


def test_a_schema_that_cannot_be_enforced_is_told_where_it_is(server):
    schema = {"type": "object", "properties": {"a": {"type": "string", "madeUp": 1, "pattern": "("}}}
    answer = post(server, {"input": "x", "text": {"format": {**FORMAT, "schema": schema, "strict": True}}})
    check_error(answer, 400, "text.format")
    assert "text.format.schema" in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(server):
    check_error(post(server, {"input": "x", "model": "gpt-4o"}), 404, "model")


def test_no_key_no_response(tmp_path):
    with serving([{"text": "yes"}], tmp_path, keys=("k",)) as guarded:
        for method, path in (("POST", ""), ("GET", "/resp_x"), ("DELETE", "/resp_x"), ("POST", "/resp_x/cancel")):
            answer = httpx.request(
                method, f"{guarded.url}/v1/responses{path}", json={"input": "x"} if method == "POST" else None
            )
            assert answer.status_code == 401


def test_while_the_model_is_loaded_there_are_no_responses(tmp_path):
    with serving([{"text": "yes"}], tmp_path, loaded=False) as server:
        answer = post(server, {"input": "x"})
        check_error(answer, 503)
        assert "retry-after" in answer.headers


def test_no_malformed_body_is_a_500(server):
    """Fields of one valid body, replaced by values of every kind, one to three at a time."""
    chance = random.Random(5)
    odd = [None, True, -1, 0, 1, 2.5, 1e300, 10**30, "", "a", "\u0000", "\ud800", [], [1], ["a"], [[]], [None], {}]
    odd += [{"type": "x"}, {"a": {"b": []}}, [{}], [{"role": "user"}], [{"type": "function"}], {"type": "json_schema"}]
    odd += [[TOOL], [CALL], {"format": FORMAT}, {"type": "function", "name": "f"}, "required", "auto", float("nan")]
    odd += [[{"type": kind} for kind in ("reasoning", "message", "function_call_output")], {"format": {"type": "text"}}]
    odd += [[{**TOOL, "parameters": {"default": float("nan")}}], {"effort": None}, [{"role": "user", "content": []}]]
    odd += [
        [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": value}]}] for value in ("a", "\ud800", 1)
    ]
    fields = ["input", "instructions", "previous_response_id", "store", "background", "metadata", "max_output_tokens"]
    fields += ["reasoning", "tools", "tool_choice", "parallel_tool_calls", "text", "top_logprobs", "include", "stream"]
    fields += ["truncation", "safety_identifier", "prompt_cache_key", "service_tier", "model", "user", "temperature"]
    fields += ["stop", "seed", "logit_bias", "max_tool_calls", "conversation", "prompt", "n", "max_tokens", "brand_new"]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(150):
            body = {"input": "hi", "max_output_tokens": 3}
            body |= {chance.choice(fields): chance.choice(odd) for _ in range(chance.choice((1, 2, 3)))}
            answer = client.post(
                "/v1/responses", content=json.dumps(body), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                check_error(answer, answer.status_code)
        for path in (
            "%00",
            "a/b",
            "%ff",
            "%ED%A0%80",
            "resp_" + "x" * 5000,
            "..",
            "x?stream=maybe",
            "x?starting_after=-1",
        ):
            assert client.get(f"/v1/responses/{path}").status_code in (400, 404, 405), path
    assert httpx.get(f"{server.url}/ready").status_code == 200

"""What is refused, with OpenAI's error object and the right status; never a 500, and the server goes on."""

from __future__ import annotations

import json
import random
import socket

import httpx
import pytest
from live_server import MODEL, serving

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def post(server, body, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=30)


def check_error(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error["message"]


def allowed(name: str, mode: str = "auto") -> dict:
    tool = {"type": "function", "function": {"name": name}}
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool]}}


CHAT = {
    "no messages": ({}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "messages is text": ({"messages": "hi"}, "messages"),
    "a message is text": ({"messages": ["hi"]}, "messages.[0]"),
    "a message without a role": ({"messages": [{"content": "hi"}]}, "messages.[0]"),
    "an unknown role": ({"messages": [USER, {"role": "king", "content": "hi"}]}, "messages.[1]"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.[0]"),
    "content is a number": ({"messages": [{"role": "user", "content": 5}]}, "messages.[0]"),
    "half a character": ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages.[0]"),
    "a tool answers nothing": (
        {"messages": [USER, {"role": "tool", "content": "x", "tool_call_id": "c"}]},
        "messages.[1]",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        "messages.[0].content.[0].type",
    ),
    "a sound": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "input_audio"}]}]},
        "messages.[0].content.[1].type",
    ),
    "temperature too high": ({"messages": [USER], "temperature": 2.1}, "temperature"),
    "temperature is text": ({"messages": [USER], "temperature": "1"}, "temperature"),
    "top_p is 0": ({"messages": [USER], "top_p": 0}, "top_p"),
    "n is 0": ({"messages": [USER], "n": 0}, "n"),
    "n is true": ({"messages": [USER], "n": True}, "n"),
    "n is huge": ({"messages": [USER], "n": 129}, "n"),
    "max_tokens is 0": ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
    "max_tokens is half": ({"messages": [USER], "max_tokens": 1.5}, "max_tokens"),
    "too many stops": ({"messages": [USER], "stop": ["a"] * 17}, "stop"),
    "an empty stop": ({"messages": [USER], "stop": ""}, "stop"),
    "a stop that is a number": ({"messages": [USER], "stop": [1]}, None),
    "top_logprobs alone": ({"messages": [USER], "top_logprobs": 2}, "top_logprobs"),
    "top_logprobs too high": ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "bias of no token": ({"messages": [USER], "logit_bias": {"abc": 1}}, "logit_bias"),
    "bias outside": ({"messages": [USER], "logit_bias": {"999999": 1}}, "logit_bias"),
    "bias twice": ({"messages": [USER], "logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
    "bias too strong": ({"messages": [USER], "logit_bias": {"5": 101}}, "logit_bias"),
    "effort": ({"messages": [USER], "reasoning_effort": "heroic"}, "reasoning_effort"),
    "tools is text": ({"messages": [USER], "tools": "f"}, "tools"),
    "a tool without a name": ({"messages": [USER], "tools": [{"type": "function", "function": {}}]}, "tools.[0]"),
    "a tool of another kind": ({"messages": [USER], "tools": [{"type": "web_search"}]}, "tools.[0]"),
    "a tool twice": ({"messages": [USER], "tools": [TOOL, TOOL]}, None),
    "tool_choice without tools": ({"messages": [USER], "tool_choice": "required"}, "tool_choice"),
    "tool_choice of another": (
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
    ),
    "allowed tools without a list": (
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        "tool_choice.allowed_tools",
    ),
    "allowed tools that are none": (
        {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
        "tool_choice.allowed_tools.tools",
    ),
    "allowed tools without a name": (
        {
            "messages": [USER],
            "tools": [TOOL],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [{"name": "f"}]}},
        },
        "tool_choice.allowed_tools.tools",
    ),
    "allowed tools that are not offered": (
        {"messages": [USER], "tools": [TOOL], "tool_choice": allowed("g")},
        "tool_choice.allowed_tools.tools",
    ),
    "allowed tools in an unknown mode": (
        {"messages": [USER], "tools": [TOOL], "tool_choice": allowed("f", "perhaps")},
        "tool_choice.allowed_tools.mode",
    ),
    "allowed tools of what is no tool": (
        {"messages": [USER], "tools": [{"function": 5}], "tool_choice": allowed("f")},
        "tool_choice.allowed_tools.tools",
    ),
    "an unknown format": ({"messages": [USER], "response_format": {"type": "xml"}}, "response_format"),
    "a format without a schema": ({"messages": [USER], "response_format": {"type": "json_schema"}}, "response_format"),
    "sound wanted": ({"messages": [USER], "modalities": ["text", "audio"]}, "modalities"),
    "audio": ({"messages": [USER], "audio": {"voice": "x"}}, "audio"),
    "functions": ({"messages": [USER], "functions": [{"name": "f"}]}, "functions"),
    "stream_options alone": ({"messages": [USER], "stream_options": {"include_usage": True}}, "stream_options"),
    "stream is text": ({"messages": [USER], "stream": "yes"}, "stream"),
    "min_tokens above": ({"messages": [USER], "min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    "vLLM's schema": ({"messages": [USER], "guided_json": {"type": "object"}}, "guided_json"),
    "vLLM's stop tokens": ({"messages": [USER], "stop_token_ids": [5]}, "stop_token_ids"),
    "seed is text": ({"messages": [USER], "seed": "1"}, "seed"),
}


@pytest.mark.parametrize("case", CHAT)
def test_a_wrong_field_is_named(server, case: str):
    body, param = CHAT[case]
    check_error(post(server, {"model": MODEL, **body}), 400, param)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"5", b'"text"', b"\xff\xfe", b'{"messages": NaN}', b"{" * 5000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 400 + b"}",
        b'{"messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "hi"}], "model": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "hi"}], "tools": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(server, body: bytes):
    answer = post(server, body)
    assert answer.status_code in (400, 404)
    check_error(answer, answer.status_code)


@pytest.mark.parametrize("kind", ["text/plain", "text/json", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_told_what_to_send(server, kind: str):
    answer = post(server, {"messages": [USER]}, Content_Type=kind)
    assert f"Content-Type: application/json; it came with {kind!r}" in check_error(answer, 400)


@pytest.mark.parametrize(
    ("body", "found"), [(b"", ""), (b"null", ""), (b"[]", ", not list"), (b"5", ", not int"), (b'"x"', ", not str")]
)
def test_a_body_that_is_no_object_is_told_so(server, body: bytes, found: str):
    assert check_error(post(server, body), 400) == f"the body must be a JSON object{found}."


def test_another_model_is_not_found_and_every_name_may_be_allowed(server, tmp_path):
    body = {"model": "gpt-4o", "messages": [USER]}
    assert "openai/gpt-oss-20b" in check_error(post(server, body), 404, "model", "model_not_found")
    assert post(server, {**body, "model": "gpt_oss_20b"}).json()["model"] == "gpt_oss_20b"
    with serving([{"text": "yes"}], tmp_path, any_model=True) as lenient:
        assert post(lenient, body).json()["model"] == "gpt-4o"
        check_error(post(lenient, {**body, "model": "\ud800"}), 400, "model")


def test_the_context_is_told_with_numbers(server):
    message = check_error(
        post(server, {"messages": [USER], "max_tokens": 8192}), 400, "messages", "context_length_exceeded"
    )
    assert "8192 tokens" in message
    long = {"messages": [{"role": "user", "content": "word " * 9000}]}
    assert "90" in check_error(post(server, long), 400, "messages", "context_length_exceeded")
    many = {"messages": [{"role": "user", "content": ""}] * 2049}  # counted, and not rendered
    assert "2049 entries" in check_error(post(server, many), 400, "messages", "context_length_exceeded")
    answer = post(server, {"input": many["messages"]}, "/v1/responses")
    assert "2049 entries" in check_error(answer, 400, "input", "context_length_exceeded")
    answer = post(server, {"prompt": "hi", "max_tokens": 8192}, "/v1/completions")
    check_error(answer, 400, "prompt", "context_length_exceeded")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    with socket.create_connection((host, int(port)), timeout=10) as line:  # a length that is not told in advance
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
        try:
            for _ in range(9):
                line.sendall(piece)
        except OSError:
            pass  # it does not read on
        answer = line.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_body_of_long_runs_is_refused_before_it_is_encoded(server):
    """A megabyte for which the encoder would hold the whole process for some ten seconds."""
    answer = post(server, {"messages": [{"role": "user", "content": ("a" * 10_000 + " ") * 100}]})
    assert "has 100 runs of 1000 bytes" in check_error(answer, 400)


def test_paths_and_methods_that_are_not_there(server):
    assert "GET /nothing: there is no such route; /docs lists" in check_error(httpx.get(f"{server.url}/nothing"), 404)
    assert "GET /v1/chat/completions: there" in check_error(httpx.get(f"{server.url}/v1/chat/completions"), 405)
    for method, path, methods in (
        ("GET", "/v1/chat/completions", "POST"),
        ("OPTIONS", f"/v1/models/{MODEL}", "GET, HEAD"),
        ("PUT", "/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ):
        answer = httpx.request(method, f"{server.url}{path}")
        check_error(answer, 405)
        assert answer.headers["allow"] == methods
    check_error(httpx.post(f"{server.url}/v1/embeddings", json={}), 404)
    check_error(httpx.post(f"{server.url}/v1/chat/completions/", json={}), 404)
    check_error(httpx.get(f"{server.url}/v1/models/gpt-4o"), 404, "model", "model_not_found")
    assert httpx.get(f"{server.url}/v1/models/{MODEL}").json()["id"] == MODEL
    assert [one["id"] for one in httpx.get(f"{server.url}/v1/models").json()["data"]] == [MODEL]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt.[1]"),
        ({"prompt": [[]]}, None),
        ({"prompt": [5, "a"]}, None),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [201088]}, "prompt"),
        ({"prompt": {"a": 1}}, None),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a" * 15_000, "b" * 15_000]}, "prompt"),
        ({"prompt": "hi", "suffix": "x"}, "suffix"),
        ({"prompt": "hi", "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"prompt": "hi", "best_of": 3}, "best_of"),
        ({"prompt": "hi", "logprobs": 6}, "logprobs"),
        ({"prompt": "hi", "echo": True, "logprobs": 1}, "echo"),
    ],
)
def test_wrong_prompts_of_completions_are_refused(server, fields, param):
    check_error(post(server, fields, "/v1/completions"), 400, param)


def test_no_malformed_body_is_a_500(server):
    """Fields of one valid body, replaced by values of every kind, one and two at a time."""
    chance = random.Random(7)
    odd = [None, True, -1, 0, 1, 2.5, 1e300, 10**30, "", "a", "\u0000", "\ud800", [], [1], ["a"], [[]], [None], {}]
    odd += [{"type": "x"}, {"a": {"b": []}}, [{}], [{"role": "user"}], [{"type": "function"}], {"type": "json_schema"}]
    fields = ["messages", "temperature", "top_p", "top_k", "min_p", "n", "stop", "max_tokens", "max_completion_tokens"]
    fields += ["logprobs", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "response_format", "seed"]
    fields += ["logit_bias", "stream", "stream_options", "model", "user", "metadata", "reasoning_effort", "modalities"]
    fields += ["ignore_eos", "min_tokens", "presence_penalty", "repetition_penalty", "functions", "prompt", "echo"]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for _ in range(200):
            body = {"messages": [USER], "prompt": "hi", "max_tokens": 3}
            body |= {chance.choice(fields): chance.choice(odd) for _ in range(chance.choice((1, 2)))}
            path = chance.choice(("/v1/chat/completions", "/v1/completions"))
            answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                check_error(answer, answer.status_code)
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_keys_are_asked_for_where_there_are_any(tmp_path):
    with serving([{"text": "yes"}], tmp_path, keys=("secret-one", "secret-two")) as guarded:
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(f"{guarded.url}{path}").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "secret-one"},
            {"Authorization": "Bearer"},
        ):
            answer = httpx.get(f"{guarded.url}/v1/models", headers=headers)
            message = check_error(answer, 401, code="invalid_api_key")
            assert "secret" not in message
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in ("secret-one", "secret-two"):
            assert httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert post(guarded, {"messages": [USER]}).status_code == 401
        for path in ("/v1/responses/resp_1", "/static-offline-docs", "/docs/", "//docs", "/nothing", "/load_model"):
            assert httpx.get(f"{guarded.url}{path}").status_code == 401, path

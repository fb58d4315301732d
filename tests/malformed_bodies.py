"""Requests that are almost right: valid ones, broken at random in their values, their JSON, their bytes and headers."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

USER = {"role": "user", "content": "hi"}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"a":1}'}}
SAMPLING = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.0, "seed": 1, "presence_penalty": 0.1, "n": 1,
    "frequency_penalty": 0.1, "repetition_penalty": 1.1, "logit_bias": {"5": 1.0}, "stop": ["x"], "max_tokens": 3,
    "user": "me", "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": False, "model": None,
}  # fmt: skip
VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [USER], **SAMPLING}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "system", "content": "s"},
                USER,
                {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "t"}]},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "parallel_tool_calls": False,
            "logprobs": True,
            "top_logprobs": 2,
            "reasoning_effort": "low",
            "modalities": ["text"],
            "metadata": {"a": "b"},
            "max_completion_tokens": 4,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [USER],
            "max_tokens": 4,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
            "generation_config": '{"max_new_tokens": 4, "do_sample": false}',
        },
    ),
    ("/v1/completions", {"prompt": ["hi", "you"], "echo": True, "best_of": 1, "suffix": None, **SAMPLING}),
    ("/v1/completions", {"prompt": [1, 2, 3], "logprobs": 2, "max_tokens": 3}),
    (
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
                {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"a":1}'},
                {"type": "function_call_output", "call_id": "call_1", "output": "t"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "o"}]},
            ],
            "instructions": "i",
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": "auto",
            "reasoning": {"effort": "low", "summary": "auto"},
            "text": {"format": {"type": "text"}, "verbosity": "low"},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 1,
            "metadata": {"a": "b"},
            "max_output_tokens": 4,
            "max_tool_calls": 1,
            "truncation": "disabled",
            "background": False,
            "store": False,
            "stream": True,
            "previous_response_id": None,
        },
    ),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4, "background": True, "conversation": None}),
    ("/load_model", {"model": "openai/gpt-oss-20b"}),
)
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2.5, -0.0, 1e300, 10**30, -(2**63) - 1, 2**64, "", "a", "null", "\u0000", "\ud800",
    "😀" * 20, "<|start|>", "<|return|><|end|>", "x" * 5000, [], [1], ["a"], [[]], [None], {}, {"": {}}, [{}], [USER],
    {"type": "text"}, {"type": "image_url"}, {"type": "function"}, {"type": "json_schema"}, {"type": "json_object"},
    {"$ref": "#"}, {"anyOf": []}, {"type": "array", "items": {"$ref": "#/$defs/none"}}, {"pattern": "(("}, "auto",
    "required", "none", "assistant", "tool", "developer", float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_ERROR = {"message", "type", "param", "code"}
CONTENT_TYPES = (
    "application/json; charset=utf-8", "application/json; charset=utf-16", "text/plain", "application/xml", "", "/",
    "multipart/form-data", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/jsonx",
    "application/vnd.api+json", "APPLICATION/JSON", "application/json;;;=", "\x80\xff",
)  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    """A request to send as it is."""

    path: str
    body: bytes
    headers: dict[str, bytes]
    how: str


def complaint(answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if answer.status_code == 200:
        return "an error of the server within a stream" if '"type":"server_error"' in answer.text else None
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    error = answer.json().get("error", {})
    if set(error) != _ERROR or not error["message"] or not isinstance(error["message"], str):
        return "no error object"
    if error["param"] is not None and not isinstance(error["param"], str):
        return "param is no text"
    return "a very long message" if len(answer.content) > 20_000 else None


def send_all(url: str, seed: int, count: int) -> Counter[int]:
    """Send `count` of them to a server; how often each status came. AssertionError at the first wrong answer."""
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:
        for number, one in enumerate(malformed(seed, count)):
            answer = client.post(one.path, content=one.body, headers=list(one.headers.items()))
            wrong = complaint(answer)
            said = f"seed {seed}, number {number}, {one.how}: {one.path} {one.headers} {one.body[:2000]!r}"
            assert wrong is None, f"{wrong}: {answer.text[:500]} to {said}"
            statuses[answer.status_code] += 1
    return statuses


def malformed(seed: int, count: int) -> Iterator[Malformed]:
    """`count` requests, the same for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _one(chance)


def _one(chance: random.Random) -> Malformed:
    path, valid = chance.choice(VALID)
    body, how = copy.deepcopy(valid), []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        change = chance.choice(_VALUES)
        how.append(change.__name__)
        body = change(chance, body)
    text = json.dumps(body, ensure_ascii=chance.random() < 0.8)
    raw = text.encode("utf-8", "surrogatepass")
    headers = {"Content-Type": b"application/json"}
    if chance.random() < 0.35:
        spoil = chance.choice(_BYTES)
        how.append(spoil.__name__)
        raw = spoil(chance, raw)
    if chance.random() < 0.15:
        how.append("headers")
        _abuse(chance, headers)
    return Malformed(path, raw, headers, " ".join(how))


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def _pick(chance: random.Random, body: Any) -> tuple[Any, Any] | None:
    return chance.choice(places) if (places := list(_places(body))) else None


def _other_value(chance: random.Random, body: Any) -> Any:
    value = copy.deepcopy(chance.choice(ODD))  # a later change may be inside it
    if (place := _pick(chance, body)) is None:
        return value
    place[0][place[1]] = value
    return body


def _no_value(chance: random.Random, body: Any) -> Any:
    if (place := _pick(chance, body)) is not None:
        del place[0][place[1]]
    return body


def _moved_value(chance: random.Random, body: Any) -> Any:
    """A value where another belongs."""
    to, source = _pick(chance, body), _pick(chance, body)
    if to is not None and source is not None:
        to[0][to[1]] = copy.deepcopy(source[0][source[1]])
    return body


def _many_values(chance: random.Random, body: Any) -> Any:
    lists = [at for container, key in _places(body) if isinstance(at := container[key], list) and at]
    if lists:
        values = chance.choice(lists)
        values *= chance.choice((2, 20, 200))
    return body


def _deep_value(chance: random.Random, body: Any) -> Any:
    """Nested values; deeper than what `json.dumps` writes, the bytes are made instead."""
    value: Any = copy.deepcopy(chance.choice(ODD))
    for _ in range(chance.choice((5, 50, 150))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    if (place := _pick(chance, body)) is not None:
        place[0][place[1]] = value
    return body


def _unknown_field(chance: random.Random, body: Any) -> Any:
    if isinstance(body, dict):
        body[chance.choice(("x", "", "\ud800", "__class__", "self", "model_config", "a" * 3000))] = copy.deepcopy(
            chance.choice(ODD)
        )
    return body


def _only_a_value(chance: random.Random, _: Any) -> Any:
    return copy.deepcopy(chance.choice(ODD))


_VALUES: tuple[Callable[[random.Random, Any], Any], ...] = (
    *[_other_value] * 6, _no_value, *[_moved_value] * 3, _many_values, _deep_value, _unknown_field, _only_a_value,
)  # fmt: skip

# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _truncated(chance: random.Random, raw: bytes) -> bytes:
    return raw[: chance.randrange(len(raw) + 1)]


def _changed_bytes(chance: random.Random, raw: bytes) -> bytes:
    out = bytearray(raw or b" ")
    for _ in range(chance.choice((1, 2, 10))):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


def _bad_utf8(chance: random.Random, raw: bytes) -> bytes:
    at = chance.randrange(len(raw) + 1)
    return (
        raw[:at] + chance.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80", b"\xe2\x82")) + raw[at:]
    )


def _other_encoding(chance: random.Random, raw: bytes) -> bytes:
    text = raw.decode("utf-8", "replace")
    return text.encode(chance.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")), "replace")


def _duplicate_keys(_: random.Random, raw: bytes) -> bytes:
    return raw[:-1] + b"," + raw[1:] if raw.startswith(b"{") and len(raw) > 2 else raw + raw


def _after_the_end(chance: random.Random, raw: bytes) -> bytes:
    return raw + chance.choice((b"}", b"null", b"\x00", b",", raw))


def _odd_number(chance: random.Random, raw: bytes) -> bytes:
    numbers = (b"NaN", b"-Infinity", b"1e999", b"-1e-999", b"9" * 5000, b"0x10", b"1_000", b"01", b"1.", b"--1")
    return raw.replace(chance.choice((b"1", b"3", b"4", b"true", b"null", b'"hi"')), chance.choice(numbers), 1)


def _very_deep(chance: random.Random, _: bytes) -> bytes:
    depth = chance.choice((500, 3000, 100_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"messages":', b"}")))
    return opening * depth + b"1" + closing * chance.choice((0, depth))


_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _truncated, _changed_bytes, _bad_utf8, _other_encoding, _duplicate_keys, _after_the_end, _odd_number, _very_deep,
)  # fmt: skip


def _abuse(chance: random.Random, headers: dict[str, bytes]) -> None:
    kind = chance.randrange(5)
    if kind == 0:
        headers["Content-Type"] = chance.choice(CONTENT_TYPES).encode("latin-1")
    elif kind == 1:
        headers["X-Request-Id"] = chance.choice((b"a" * 5000, b"\xff\xfe", b"a b", b"<script>", b"", b"%0d%0a"))
    elif kind == 2:
        headers["Authorization"] = chance.choice(
            (b"", b"Bearer", b"Bearer \xff", b"Basic YTpi", b"Bearer " + b"k" * 9000)
        )
    elif kind == 3:
        headers["Content-Encoding"] = chance.choice((b"gzip", b"br", b"x"))
    else:
        headers["Accept"] = chance.choice((b"", b"image/png", b"*/*;q=0", b"\x80", b"text/event-stream" + b"," * 3000))

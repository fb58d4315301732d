"""A long body is read as a short one is, in a thread, and holds up nobody."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading

import httpx
import pytest
from event_turns import with_turns
from live_server import MODEL

from gptoss_dist.server import body

USER = {"role": "user", "content": "emoji"}
BODIES = [
    '{"a": [1, -2.5e3, true, null, "x\\u00e9\\ud83d\\ude00", {"b": []}], "a": NaN, "c": {}}',
    "[]",
    '"text"',
    " [1 , 2]\n",
    '{"half": "\\ud83d"}',
]
WRONG = ["", "{", "[1,", '{"a" 1}', '{"a": 1,}', "nul", '"\n"', "[1] 2", "[1 2]", '{"a": tru}']


@pytest.mark.parametrize("text", BODIES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_what_is_read_is_what_the_json_module_reads(text: str, encoding: str):
    content = text.encode(encoding)
    assert repr(body.loads(content)) == repr(json.loads(content))


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_json_is_told_as_the_json_module_tells_it(text: str):
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as found:
        body.loads(text.encode())
    assert str(found.value) == str(expected.value)


def request_of(content: bytes, **headers: str) -> body._Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": content, "more_body": False}

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return body._Request({"type": "http", "headers": pairs}, receive)


def test_others_have_their_turn_while_a_long_body_is_read(monkeypatch):
    readers = []
    loads = body.loads
    monkeypatch.setattr(body, "loads", lambda content: (readers.append(threading.current_thread()), loads(content))[1])
    long = {"messages": [USER] * 10_000}
    assert len(json.dumps(long)) > body.AT_ONCE
    found, turns = asyncio.run(with_turns(request_of(json.dumps(long).encode()).json()))
    assert found == long
    assert turns > 0
    assert readers != [threading.main_thread()]
    assert asyncio.run(with_turns(request_of(b"{}").json())) == ({}, 0)


def test_a_long_body_is_answered_and_refused_as_a_short_one(server):
    for padding in ("", "x" * body.AT_ONCE):
        fields = {"model": MODEL, "messages": [USER], "unknown": padding}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=fields)
        assert answer.json()["choices"][0]["message"]["content"].startswith("a😀b")
        headers = {"Content-Type": "application/json"}
        for wrong, said in (
            (f'{{"messages": [{{}}, "{padding}"', "the body is not JSON: Expecting ',' delimiter."),
            ("[" * 200_000 + padding, "the body is not JSON: "),
            (f'{{"unknown": "{padding}", "messages": 5}}', "messages: "),
        ):
            answer = httpx.post(f"{server.url}/v1/chat/completions", content=wrong, headers=headers)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(said)


def test_a_compressed_body_is_told_to_come_as_it_is(server):
    content = gzip.compress(json.dumps({"messages": [USER]}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/load_model"):
        answer = httpx.post(f"{server.url}{path}", content=content, headers=headers)
        assert answer.status_code == 415
        assert "Content-Encoding is 'gzip'" in answer.json()["error"]["message"]
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={"messages": [USER]}, headers={"Content-Encoding": "identity"}
    )
    assert answer.status_code == 200

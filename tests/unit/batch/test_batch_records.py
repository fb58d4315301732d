from __future__ import annotations

import json

import pytest

from gptoss_dist.batch.records import CHAT, RESPONSES, key_of, parse


def read(content: object):
    line = content if isinstance(content, bytes) else json.dumps(content).encode()
    return parse(line, 4, "in.jsonl:5", "5")


def test_openais_form():
    record = read({"custom_id": "a", "method": "POST", "url": RESPONSES, "body": {"input": "hi"}})
    assert (record.id, record.url, record.body, record.refusal) == ("a", RESPONSES, {"input": "hi"}, None)
    assert (record.number, record.where, record.has_id) == (4, "in.jsonl:5", True)


def test_plain_forms_keep_what_stands_beside_them():
    record = read({"id": 7, "prompt": "hi", "max_tokens": 3, "stop": ["x"]})
    assert record.id == "7"
    assert record.url == CHAT
    assert record.body == {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stop": ["x"]}
    assert read({"id": "b", "messages": [1], "seed": 2}).body == {"messages": [1], "seed": 2}


def test_the_place_stands_in_for_an_id():
    record = read({"prompt": "hi"})
    assert (record.id, record.has_id) == ("5", False)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{nope", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"1" * 5000, "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"null", "invalid_json"),
        ({"id": True, "prompt": "x"}, "invalid_id"),
        ({"id": {}, "prompt": "x"}, "invalid_id"),
        ({"id": "", "prompt": "x"}, "invalid_id"),
        ({"id": "a"}, "invalid_record"),
        ({"id": "a", "prompt": "x", "messages": []}, "invalid_record"),
        ({"id": "a", "prompt": ["x"]}, "invalid_record"),
        ({"custom_id": "a", "body": "x"}, "invalid_body"),
        ({"custom_id": "a", "method": "GET", "body": {}}, "invalid_method"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {}}, "invalid_url"),
        ({"custom_id": "a", "url": ["x"], "body": {}}, "invalid_url"),
    ],
)
def test_poison_is_a_refusal_that_names_the_place(content: object, code: str):
    record = read(content)
    assert record.refusal is not None
    assert record.refusal.code == code
    assert record.refusal.message.startswith("in.jsonl:5: ")
    assert record.id == ("a" if isinstance(content, dict) and code != "invalid_id" else "5")


def test_half_a_character_is_an_id_too():
    record = read(b'{"id": "\\ud800", "prompt": "x"}')
    assert record.refusal is None
    assert record.key != key_of("?")

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import ValidationError

from gptoss_dist.server.chat_request import ChatRequest
from gptoss_dist.server.completions import CompletionRequest
from gptoss_dist.server.generation_config import spread

BODY = {"messages": [{"role": "user", "content": "hi"}]}


def chat(config: object, **fields: object) -> ChatRequest:
    text = config if isinstance(config, str) else json.dumps(config)
    return ChatRequest.model_validate({**BODY, "generation_config": text, **fields})


def test_what_transformers_chat_sends_is_heard():
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=True, max_new_tokens=256, temperature=0.3, top_k=7, repetition_penalty=1.2)
    asked = chat(config.to_json_string())
    assert (asked.most_tokens, asked.temperature, asked.top_k, asked.repetition_penalty) == (256, 0.3, 7, 1.2)
    assert asked.top_p is None


def test_greedy_is_a_temperature_of_zero():
    assert chat({"do_sample": False, "temperature": 0.7}).temperature == 0


def test_the_requests_own_fields_come_first():
    asked = chat({"temperature": 0.1, "max_new_tokens": 5, "stop_strings": ["x"]}, temperature=0.9, stop="y")
    assert (asked.temperature, asked.stops, asked.most_tokens) == (0.9, ["y"], 5)
    assert chat({"max_new_tokens": 5}, max_completion_tokens=9).most_tokens == 9


def test_what_is_out_of_range_is_named():
    with pytest.raises(ValidationError, match="temperature"):
        chat({"temperature": 3.5})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": NaN'])
def test_what_is_no_object_is_refused(text: str):
    with pytest.raises(ValidationError, match="generation_config"):
        chat(text)


def test_other_bodies_are_left_alone():
    for body in ({"a": 1}, [], None, "text", {"generation_config": None}):
        assert spread(body) is body
    assert CompletionRequest.model_validate({"prompt": "x", "generation_config": '{"top_p": 0.5}'}).top_p == 0.5


def test_the_server_says_what_is_wrong_with_it(server):
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "generation_config": "{"})
    assert answer.status_code == 400
    assert "generation_config is not JSON" in answer.json()["error"]["message"]

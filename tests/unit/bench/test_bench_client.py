from __future__ import annotations

import json

import pytest

from gptoss_dist.bench.client import Endpoint, Piece, read_event, words
from gptoss_dist.errors import ServerError
from gptoss_dist.schema.job.bench import BenchApi


def event(**content) -> str:
    return json.dumps(content)


@pytest.mark.parametrize(
    ("choice", "has_tokens", "ended"),
    [
        ({"text": "a", "finish_reason": None}, True, False),
        ({"text": "", "finish_reason": None}, False, False),
        ({"text": "", "finish_reason": "length"}, False, True),
        ({"delta": {"role": "assistant", "content": ""}}, False, False),
        ({"delta": {"role": "assistant"}}, False, False),
        ({"delta": {"content": "a"}}, True, False),
        ({"delta": {"reasoning_content": "a"}}, True, False),
        ({"delta": {"reasoning": "a", "content": None}}, True, False),
        ({"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}, True, False),
        ({"delta": {}, "finish_reason": "stop"}, False, True),
    ],
)
def test_what_counts_as_tokens_and_as_an_end(choice, has_tokens, ended):
    assert read_event(event(choices=[choice])) == Piece(has_tokens, None, ended)


def test_usage():
    usage = {"prompt_tokens": 3, "completion_tokens": 9}
    assert read_event(event(choices=[], usage=usage)) == Piece(False, usage, False)
    assert read_event(event(choices=[{"text": "a"}], usage=None)) == Piece(True, None, False)


@pytest.mark.parametrize("text", ["{", "[1]", '{"error": {"message": "out of memory"}}'])
def test_what_is_no_event_of_a_stream(text):
    with pytest.raises(ServerError, match="the stream"):
        read_event(text)


def test_bodies():
    body = Endpoint("m", BenchApi.completions, True).body((5, 6), 9, 42)
    assert body == {
        "model": "m",
        "prompt": [5, 6],
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 42,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "min_tokens": 9,
    }
    chat = Endpoint("m", BenchApi.chat, False).body((5, 6), 9, 42)
    assert chat["max_completion_tokens"] == 9
    assert len(chat["messages"][0]["content"].split()) == 2
    assert not {"prompt", "max_tokens", "ignore_eos", "min_tokens"} & set(chat)


def test_words_differ_with_the_prompt():
    assert words((1, 2, 3)) == words((1, 2, 3)) != words((1, 2, 4))

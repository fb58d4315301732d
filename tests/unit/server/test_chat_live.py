"""/v1/chat/completions of a scripted server, with HTTP as it is and with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import subprocess

import httpx
import openai
import pytest
from live_server import MODEL
from pydantic import BaseModel
from server_streams import check_chat, check_chat_stream, events_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def ask(server, text: str, **fields) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def whole(server, text: str, **fields):
    answer = ask(server, text, **fields)
    assert answer.status_code == 200, answer.text
    return check_chat(answer.json())


def streamed(server, text: str, choices: int = 1, **fields):
    answer = ask(server, text, stream=True, stream_options={"include_usage": True}, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return check_chat_stream(events_of(answer.text), choices, usage=True, logprobs=bool(fields.get("logprobs")))


@pytest.mark.parametrize(
    ("text", "fields", "content", "reasoning", "finish"),
    [
        ("hi", {}, "Hello, wörld! STOP here.", "Think a bit.", "stop"),
        ("hi", {"stop": "STOP"}, "Hello, wörld! ", "Think a bit.", "stop"),
        ("hi", {"stop": ["nope", "wörld! STOP he"]}, "Hello, ", "Think a bit.", "stop"),
        ("hi", {"stop": "never said"}, "Hello, wörld! STOP here.", "Think a bit.", "stop"),
        ("hi", {"max_tokens": 5}, "", "Think a", "length"),
        ("hi", {"max_completion_tokens": 14}, "Hello", "Think a bit.", "length"),
        ("emoji", {}, "a😀b 日本 👨‍👩‍👧 ü", "", "stop"),
        ("cut in reasoning", {}, "", "I think and think", "length"),
        ("malformed", {}, "still text", "", "stop"),
        ("headless", {}, "just words without any header at all", "", "stop"),
        ("wild call", {}, "", "print(1)", "stop"),
        ("nothing", {}, "", "", "stop"),
        ("empty final", {}, "", "", "stop"),
        ("weather", {}, '{"city":"Paris"}', "Call it.", "stop"),  # no functions were offered
    ],
)
def test_whatever_the_model_says_is_text_with_a_finish_reason(server, text, fields, content, reasoning, finish):
    (one,) = whole(server, text, **fields)
    assert (one.content, one.reasoning, one.finish_reason) == (content, reasoning, finish)
    assert one.calls == []
    (same,), _ = streamed(server, text, **fields)
    assert (same.content, same.reasoning, same.finish_reason) == (content, reasoning, finish)


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a_stream_may_be_cut_wherever_unicode_ends_a_line(server, path):
    body = {"messages": [{"role": "user", "content": "line ends"}], "input": "line ends", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/{path}", json=body, timeout=30) as got:
        lines = [line for line in got.iter_lines() if line]
    assert all(line.startswith(("data: ", "event: ")) for line in lines)
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if path == "responses":
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    else:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert text == "a\x85b\u2028c\u2029d\x1ce\n\r\nf"


def test_a_tool_call_comes_whole_and_in_pieces(server):
    (one,) = whole(server, "weather", tools=[WEATHER])
    (same,), usage = streamed(server, "weather", tools=[WEATHER])
    for each in (one, same):
        assert each.finish_reason == "tool_calls"
        assert each.content == ""
        assert each.reasoning == "Call it."
        ((name, arguments),) = [(call["name"], call["arguments"]) for call in each.calls]
        assert name == "get_weather"
        assert json.loads(arguments) == {"city": "Paris"}
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 3


def test_a_call_that_is_cut_short_is_no_finished_call(server):
    (one,) = whole(server, "weather", tools=[WEATHER], max_tokens=22)
    assert one.finish_reason == "length"


def test_two_calls_in_a_turn_have_two_indexes_and_ids(server):
    (one,), _ = streamed(server, "twice", tools=[WEATHER])
    assert [json.loads(call["arguments"])["city"] for call in one.calls] == ["Paris", "Rome"]
    assert len({call["id"] for call in one.calls}) == 2
    (alone,), _ = streamed(server, "twice", tools=[WEATHER], parallel_tool_calls=False)
    assert [json.loads(call["arguments"])["city"] for call in alone.calls] == ["Paris"]
    assert alone.finish_reason == "tool_calls"


def test_words_before_a_call_are_content(server):
    (one,), _ = streamed(server, "preamble", tools=[WEATHER])
    assert one.content == "Let me look."
    assert len(one.calls) == 1


def test_auto_may_be_said_where_there_are_no_tools(server):
    (one,) = whole(server, "hi", tool_choice="auto")
    assert one.content == "Hello, wörld! STOP here."


def test_tool_choice_none_offers_nothing(server):
    (one,) = whole(server, "weather", tools=[WEATHER], tool_choice="none")
    assert one.calls == []
    assert one.finish_reason == "stop"


def test_of_the_tools_those_that_are_allowed_are_told_of(server):
    other = {"type": "function", "function": {"name": "get_time"}}
    for tool in (WEATHER, other):
        name = {"name": tool["function"]["name"]}
        allowed = {"mode": "auto", "tools": [{"type": "function", "function": name}]}
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        _, narrowed = streamed(server, "weather", tools=[WEATHER, other], tool_choice=choice)
        _, alone = streamed(server, "weather", tools=[tool])
        assert narrowed["prompt_tokens"] == alone["prompt_tokens"]


def test_several_answers_have_their_indexes(server):
    choices, usage = streamed(server, "count", choices=3, n=3)
    assert {one.content for one in choices} == {"one two three four five six seven eight nine ten"}
    body = ask(server, "count", n=3).json()
    assert len(check_chat(body)) == 3
    assert body["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert body["usage"]["prompt_tokens"] == usage["prompt_tokens"]


def test_log_probabilities_belong_to_the_tokens_of_the_content(server):
    (one,) = whole(server, "hi", logprobs=True, top_logprobs=3)
    (same,), _ = streamed(server, "hi", logprobs=True, top_logprobs=3)
    for each in (one, same):
        assert b"".join(bytes(token["bytes"]) for token in each.tokens).decode() == each.content
        assert all(len(token["top_logprobs"]) == 3 for token in each.tokens)
        assert all(token["top_logprobs"][0]["token"] == token["token"] for token in each.tokens)
        assert all(token["logprob"] == -0.25 for token in each.tokens)
    (none,) = whole(server, "hi", logprobs=True)
    assert all(token["top_logprobs"] == [] for token in none.tokens)


def test_log_probabilities_of_half_characters_add_up(server):
    (one,), _ = streamed(server, "emoji", logprobs=True)
    assert b"".join(bytes(token["bytes"]) for token in one.tokens).decode() == "a😀b 日本 👨‍👩‍👧 ü"


def test_log_probabilities_end_at_the_stop_text(server):
    (one,), _ = streamed(server, "hi", logprobs=True, stop="STOP")
    said = [token["token"] for token in one.tokens]
    assert "".join(said).startswith(one.content)
    assert len("".join(said[:-1])) < len(one.content)  # the last token begins in the content, if only by a space


def test_every_answer_has_an_id_for_the_request(server):
    answer = ask(server, "hi")
    assert answer.headers["x-request-id"].startswith("req_")
    given = httpx.get(f"{server.url}/health", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    odd = httpx.get(f"{server.url}/health", headers={"X-Request-Id": "a b<script>"})
    assert odd.headers["x-request-id"].startswith("req_")


def test_the_whole_conversation_may_be_sent_back(server):
    (one,) = whole(server, "weather", tools=[WEATHER])
    call = {"id": one.calls[0]["id"], "type": "function"}
    call["function"] = {"name": "get_weather", "arguments": one.calls[0]["arguments"]}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Use tools."}]},
        {"role": "user", "content": [{"type": "text", "text": "weather"}, {"type": "text", "text": " please"}]},
        {"role": "assistant", "content": None, "reasoning_content": one.reasoning, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"sky":"sunny"}'},
        {"role": "user", "content": "count"},
    ]
    body = {"messages": messages, "tools": [WEATHER], "reasoning_effort": "high", "model": MODEL}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert check_chat(answer.json())[0].content.startswith("one two")


def test_a_refusal_may_be_sent_back(server):
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    body = {"messages": [{"role": "user", "content": "a"}, refused, {"role": "user", "content": "count"}]}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200


def test_a_call_that_is_no_json_may_be_sent_back_as_it_came(server):
    (one,) = whole(server, "broken call", tools=[WEATHER])
    (call,) = one.calls
    assert (call["name"], call["arguments"]) == ("get_wéather", '{"city": Paris')
    sent = {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
    messages = [
        {"role": "user", "content": "broken call"},
        {"role": "assistant", "content": None, "tool_calls": [sent]},
        {"role": "tool", "tool_call_id": call["id"], "content": "error: no JSON"},
        {"role": "user", "content": "count"},
    ]
    body = {"messages": messages, "tools": [WEATHER], "model": MODEL}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert check_chat(answer.json())[0].content.startswith("one two")


def test_unknown_fields_and_nulls_are_accepted(server):
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stop", "max_tokens", "tools", "tool_choice", "seed", "stream"))
    accepted = {
        "store": True,
        "metadata": {"a": "b"},
        "user": "me",
        "service_tier": "auto",
        "brand_new": [1],
        "prediction": 1,
    }
    assert ask(server, "hi", **nulls, **accepted).status_code == 200
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": -5, "presence_penalty": 1}
    more = {"frequency_penalty": -1, "repetition_penalty": 1.1, "logit_bias": {"13": -100, "17": 5.5}}
    assert ask(server, "hi", **sampling, **more).status_code == 200


# ── OpenAI's own client ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_the_client_gets_whole_answers(client):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "Hello, wörld! STOP here."
    assert answer.choices[0].message.reasoning_content == "Think a bit."
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    assert answer._request_id.startswith("req_")


def test_the_client_streams(client):
    with client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "emoji"}], stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "a😀b 日本 👨‍👩‍👧 ü"


def test_the_client_helper_collects_a_stream_with_calls(client):
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "weather"}],
        tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}],
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}


class Person(BaseModel):
    name: str
    age: int


def test_the_client_parses_structured_output(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "json"}], response_format=Person
    )
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


def test_async_clients_do_not_wait_for_each_other(server):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(text: str) -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": text}], stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one("count" if index % 2 else "emoji") for index in range(20)))

    answers = asyncio.run(ask_all())
    assert set(answers[::2]) == {"a😀b 日本 👨‍👩‍👧 ü"}
    assert set(answers[1::2]) == {"one two three four five six seven eight nine ten"}


def test_the_client_raises_the_errors_it_has_a_name_for(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=3)
    assert wrong.value.param == "temperature"


def test_the_guides_curl_line_streams(server):
    line = (
        f"curl -sN -X POST {server.url}/v1/chat/completions -H 'Content-Type: application/json' -d "
        '\'{"messages": [{"role": "system", "content": "hello"}], "temperature": 0.9, "max_tokens": 1000, '
        f'"stream": true, "model": "{MODEL}"}}\''
    )
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30)
    (one,), _ = check_chat_stream(events_of(done.stdout))
    assert one.finish_reason == "stop"

"""/v1/responses with OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pytest
from live_server import MODEL
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


class Person(BaseModel):
    name: str
    age: int


PERSON = Person.model_json_schema()


def test_create(client):
    response = client.responses.create(model=MODEL, input="hi", instructions="Be brief.", reasoning={"effort": "low"})
    assert response.output_text == "Hello, wörld! STOP here."
    assert response.output[0].content[0].text == "Think a bit."
    assert response.usage.output_tokens_details.reasoning_tokens == 4
    assert response.reasoning.effort == "low"
    assert response._request_id.startswith("req_")
    assert client.responses.retrieve(response.id).output_text == response.output_text


def test_create_with_stream(client):
    with client.responses.create(model=MODEL, input="emoji", stream=True) as stream:
        events = list(stream)
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "a😀b 日本 👨‍👩‍👧 ü"
    assert events[-1].response.output_text == "a😀b 日本 👨‍👩‍👧 ü"


def test_the_stream_helper_collects_text_and_reasoning(client):
    with client.responses.stream(model=MODEL, input="hi") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.reasoning_text.done" in kinds
    assert final.output_text == "Hello, wörld! STOP here."


def test_the_stream_helper_parses_calls_and_structured_output(client):
    with client.responses.stream(model=MODEL, input="weather", tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert final.output[-1].parsed_arguments == {"city": "Paris"}
    with client.responses.stream(model=MODEL, input="json", text_format=Person) as stream:
        parsed = [event.parsed for event in stream if event.type == "response.output_text.done"]
        assert stream.get_final_response().output_parsed == Person(name="Ada", age=36)
    assert parsed == [Person(name="Ada", age=36)]


def test_parse(client):
    response = client.responses.parse(model=MODEL, input="json", text_format=Person)
    assert response.output_parsed == Person(name="Ada", age=36)
    assert response.text.format.type == "json_schema"


def test_a_function_is_called_and_its_result_sent_back(client):
    first = client.responses.create(model=MODEL, input="weather", tools=[WEATHER])
    call = first.output[-1]
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert json.loads(call.arguments) == {"city": "Paris"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        tools=[WEATHER],
        input=[result, {"role": "user", "content": "count"}],
    )
    assert second.previous_response_id == first.id
    assert second.output_text.startswith("one two")
    listed = list(client.responses.input_items.list(second.id, order="asc", limit=1))
    assert [item.type for item in listed] == ["function_call_output", "message"]
    whole = [{"role": "user", "content": "weather"}, *first.output, result, {"role": "user", "content": "count"}]
    third = client.responses.create(model=MODEL, input=whole, tools=[WEATHER], store=False)
    assert third.usage.input_tokens == second.usage.input_tokens


def test_background_poll_cancel_and_delete(client):
    response = client.responses.create(model=MODEL, input="count", background=True)
    while response.status in ("queued", "in_progress"):
        time.sleep(0.01)
        response = client.responses.retrieve(response.id)
    assert response.status == "completed"
    assert response.output_text.startswith("one two")
    slow = client.responses.create(model=MODEL, input="slow", background=True)
    assert client.responses.cancel(slow.id).status == "cancelled"
    client.responses.delete(slow.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(slow.id)


def test_a_background_stream_is_taken_up_by_its_id(client):
    stream = client.responses.create(model=MODEL, input="slow", background=True, stream=True, max_output_tokens=20)
    for event in stream:
        if event.type == "response.created":
            name = event.response.id
        if event.sequence_number == 6:
            stream.close()
            break
    with client.responses.retrieve(name, stream=True, starting_after=6) as rest:
        events = list(rest)
    assert [one.sequence_number for one in events] == list(range(7, 7 + len(events)))
    assert events[-1].type == "response.incomplete"
    with client.responses.stream(response_id=name, starting_after=6) as helper:
        assert [one.sequence_number for one in helper] == [one.sequence_number for one in events]


def test_input_tokens_are_those_of_the_request_itself(client):
    count = client.responses.input_tokens.count
    requests = [
        {"input": "hi"},
        {"input": "weather", "instructions": "Be brief.", "tools": [WEATHER], "tool_choice": "required"},
        {"input": [{"role": "user", "content": "json"}], "reasoning": {"effort": "high"}, "truncation": "auto"},
        {
            "input": "json",
            "text": {"format": {"type": "json_schema", "name": "x", "schema": PERSON}},
        },
    ]
    for fields in requests:
        counted = count(model=MODEL, **fields)
        response = client.responses.create(model=MODEL, **fields)
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", response.usage.input_tokens)
    follow = {"previous_response_id": response.id, "input": "and now?"}
    usage = client.responses.create(model=MODEL, **follow).usage
    alone = count(previous_response_id=response.id).input_tokens
    assert count(**follow).input_tokens == usage.input_tokens > alone > count(input="json").input_tokens
    assert count(input="word " * 9000).input_tokens > 9000, "more than the context holds"


def test_input_tokens_of_no_request_are_refused_as_it_is(client):
    for fields, error, param in (
        ({}, openai.BadRequestError, "input"),
        ({"input": "hi", "previous_response_id": "resp_none"}, openai.BadRequestError, "previous_response_id"),
        ({"input": "hi", "tools": [{"type": "web_search"}]}, openai.BadRequestError, "tools.[0].type"),
        ({"input": "hi", "model": "gpt-4o"}, openai.NotFoundError, "model"),
    ):
        with pytest.raises(error) as refused:
            client.responses.input_tokens.count(**fields)
        assert refused.value.param == param


def test_errors_have_the_names_that_the_client_knows(client):
    with pytest.raises(openai.BadRequestError) as missing:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_none")
    assert missing.value.code == "previous_response_not_found"
    assert missing.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.responses.create(model=MODEL, input="hi", tools=[{"type": "web_search"}])
    assert wrong.value.param == "tools.[0].type"
    with pytest.raises(openai.NotFoundError) as model:
        client.responses.create(model="gpt-4o", input="hi")
    assert model.value.code == "model_not_found"


def test_async_clients_do_not_wait_for_each_other(server):
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> str:
                text = "count" if index % 2 else "emoji"
                if index % 3:
                    return (await client.responses.create(model=MODEL, input=text)).output_text
                async with client.responses.stream(model=MODEL, input=text) as stream:
                    return (await stream.get_final_response()).output_text

            return await asyncio.gather(*map(one, range(20)))

    answers = asyncio.run(ask_all())
    assert set(answers[::2]) == {"a😀b 日本 👨‍👩‍👧 ü"}
    assert set(answers[1::2]) == {"one two three four five six seven eight nine ten"}

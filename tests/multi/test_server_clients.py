"""Clients that people have, unchanged, against `gptoss serve` with the toy on two ranks; it answers what it knows."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pexpect
import pydantic
import pytest
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pty_programs import end
from serve_ranks import BIN, Server
from server_streams import check_chat_stream, events_of

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS, WEATHER_TOOL

pytestmark = pytest.mark.multi
ROOT = Path(__file__).parents[2]
MODEL = "openai/gpt-oss-20b"
BY_NAME = {one.name: one for one in CONVERSATIONS}
CAPITAL = BY_NAME["capital"]
ASKED: dict[str, Any] = {"model": MODEL, "messages": list(CAPITAL.messages), "temperature": 0, "max_tokens": 100}
WEATHER = BY_NAME["weather_call"]
FLAT_TOOL = {"type": "function", "strict": False, **WEATHER_TOOL["function"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    tiny_checkpoint()
    one = Server(tmp_path_factory.mktemp("clients"), f"job.model_name={MODEL}", "job.date=null")
    try:
        yield one.wait_until_it_serves()
    finally:
        one.close()


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as one:
        yield one


# ── the guide ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_guides_curl_line(server: Server):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = (
        'curl -X POST http://localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d \'{"messages": '
        '[{"role": "system", "content": "hello"}], "temperature": 0.9, "max_tokens": 1000, "stream": true, '
        '"model": "openai/gpt-oss-20b"}\''
    )
    line = line.replace("http://localhost:8000", server.url)
    done = subprocess.run(["bash", "-c", f"{line} -sSN"], capture_output=True, text=True, timeout=60, check=True)
    (one,), _ = check_chat_stream(events_of(done.stdout))
    assert one.finish_reason == "stop"
    assert one.content


@pytest.fixture
def transformers_chat(server: Server, tmp_path: Path) -> Iterator[Any]:
    chats: list[pexpect.spawn] = []

    def start(*flags: str) -> pexpect.spawn:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb", "NO_COLOR": "1", "HF_HUB_OFFLINE": "0"}
        command = ["chat", MODEL, server.url.replace("127.0.0.1", "localhost"), *flags]
        chat = pexpect.spawn(
            str(BIN / "transformers"),
            command,
            cwd=tmp_path,
            env=environ,
            timeout=90,
            encoding="utf-8",
            dimensions=(40, 160),
        )
        chats.append(chat)
        return chat

    yield start
    for chat in chats:
        end(chat)


def test_transformers_chat_talks_with_the_server(transformers_chat):
    chat = transformers_chat("do_sample=False")
    chat.expect("was already loaded")
    chat.sendline("What is 2 + 2?")
    chat.expect(f"<{MODEL}>:")
    chat.expect(r"2 \+ 2 = 4\.")
    chat.expect(r"<\w+>:")
    chat.sendline("And times three?")  # the second turn carries the first
    chat.expect(r"4 \* 3 = 12\.")
    chat.sendline("!exit")
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 0


def test_transformers_chats_own_settings_take_effect(transformers_chat):
    chat = transformers_chat("do_sample=False", "max_new_tokens=4")
    chat.expect("was already loaded")
    chat.sendline("Who are you?")
    chat.expect("Generation stopped after reaching the token limit")


def test_transformers_chat_is_told_that_a_model_is_not_here(server: Server):
    answer = httpx.post(f"{server.url}/load_model", json={"model": "gpt-4o"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_hugging_faces_own_client(server: Server):
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=server.url, timeout=60)
    asked = {"messages": list(CAPITAL.messages), "model": MODEL, "temperature": 0.0, "max_tokens": 100}
    assert client.chat_completion(**asked).choices[0].message.content == CAPITAL.answer_text
    chunks = list(client.chat_completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CAPITAL.answer_text
    assert "".join(chunk.choices[0].delta.reasoning or "" for chunk in chunks) == CAPITAL.analysis


# ── OpenAI's client ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_models(client: openai.OpenAI):
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "gptoss-dist"


def test_async_clients_at_once(server: Server):
    known = [one for one in CONVERSATIONS if not one.options.tools]

    async def ask(client: openai.AsyncOpenAI, messages: list[Any], stream: bool) -> str:
        asked = {**ASKED, "messages": messages}
        if not stream:
            return (await client.chat.completions.create(**asked)).choices[0].message.content or ""
        text = ""
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            asked = (ask(client, list(one.messages), stream) for one in known for stream in (True, False))
            return await asyncio.gather(*asked)

    assert asyncio.run(ask_all()) == [one.answer_text for one in known for _ in range(2)]


def test_the_streaming_helper_puts_an_answer_together(client: openai.OpenAI):
    asked = {**ASKED, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        whole = stream.get_final_completion()
    deltas = "".join(event.delta for event in events if event.type == "content.delta")
    (done,) = (event for event in events if event.type == "content.done")
    assert deltas == done.content == whole.choices[0].message.content == CAPITAL.answer_text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0


def test_the_streaming_helper_puts_a_tool_call_together(client: openai.OpenAI):
    asked = {**ASKED, "messages": list(WEATHER.messages), "tools": [WEATHER_TOOL]}
    with client.chat.completions.stream(**asked) as stream:
        arguments = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [(one.name, one.arguments) for one in arguments] == list(WEATHER.tool_calls)
    assert message.tool_calls is not None
    assert message.tool_calls[0].id.startswith("call_")


class Verdict(pydantic.BaseModel):
    """Short, so that a toy that has never written JSON gets to its end."""

    is_city: bool
    verdict: Literal["yes", "no"]


class GetWeather(pydantic.BaseModel):
    """Get the current weather of a city."""

    city: Literal["Paris", "Rome"]


def test_an_answer_is_parsed_into_a_pydantic_model(client: openai.OpenAI):
    answer = client.chat.completions.parse(**{**ASKED, "max_tokens": 400}, response_format=Verdict)
    assert isinstance(answer.choices[0].message.parsed, Verdict)
    with client.chat.completions.stream(**{**ASKED, "max_tokens": 400}, response_format=Verdict) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == answer.choices[0].message.parsed


def test_a_calls_arguments_are_parsed_into_a_pydantic_model(client: openai.OpenAI):
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather")
    answer = client.chat.completions.parse(**{**ASKED, "max_tokens": 400}, tools=[tool], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_a_loop_over_tools_with_chat_completions(client: openai.OpenAI):
    messages: list[Any] = list(WEATHER.messages)
    first = client.chat.completions.create(**{**ASKED, "messages": messages}, tools=[WEATHER_TOOL])
    (call,) = first.choices[0].message.tool_calls or []
    messages.append(first.choices[0].message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"sky":"sunny","celsius":20}'})
    last = client.chat.completions.create(**{**ASKED, "messages": messages}, tools=[WEATHER_TOOL])
    assert last.choices[0].message.content == BY_NAME["weather_result"].answer_text


def test_older_completions(client: openai.OpenAI):
    asked = {"model": MODEL, "prompt": "The capital of France", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**asked).choices[0]
    streamed = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.text
    assert whole.finish_reason in ("stop", "length")


def test_errors_become_the_clients_own_exceptions(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.chat.completions.create(**{**ASKED, "model": "gpt-4o"})
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(**{**ASKED, "max_tokens": 1_000_000})


# ── the Responses API ────────────────────────────────────────────────────────────────────────────────────────────────

RESPONSE: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_output_tokens": 100}
QUESTION = CAPITAL.messages[0]["content"]


def test_responses_whole_and_continued(client: openai.OpenAI):
    first = client.responses.create(**RESPONSE, input="What is 2 + 2?")
    assert first.output_text == BY_NAME["addition"].answer_text
    second = client.responses.create(**RESPONSE, input="And times three?", previous_response_id=first.id)
    assert second.output_text == BY_NAME["second_turn"].answer_text
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(first.id)


def test_the_streaming_helper_of_responses(client: openai.OpenAI):
    with client.responses.stream(**RESPONSE, input=QUESTION) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert [event.sequence_number for event in events] == sorted({event.sequence_number for event in events})
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    reasoning = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert (text, reasoning) == (CAPITAL.answer_text, CAPITAL.analysis)
    assert whole.output_text == CAPITAL.answer_text
    assert whole.status == "completed"


def test_responses_are_parsed_into_a_pydantic_model(client: openai.OpenAI):
    answer = client.responses.parse(**{**RESPONSE, "max_output_tokens": 400}, input=QUESTION, text_format=Verdict)
    assert isinstance(answer.output_parsed, Verdict)


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_tool_runner(client: openai.OpenAI, stream: bool):
    asked: list[dict[str, object]] = []

    def get_weather(arguments: dict[str, object]) -> str:
        asked.append(arguments)
        return '{"sky":"sunny","celsius":20}'

    runner = ResponsesToolRunner(functions=[RegisteredFunction(FLAT_TOOL, get_weather)])
    params = {**RESPONSE, "input": [{"role": "user", "content": WEATHER.messages[0]["content"]}]}
    answer = runner.run(client, params, max_steps=3, stream=stream)
    assert asked == [{"city": "San Francisco"}]
    assert answer.output_text == BY_NAME["weather_result"].answer_text


def test_async_responses(server: Server):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            text = ""
            async for event in await client.responses.create(**RESPONSE, input=QUESTION, stream=True):
                text += event.delta if event.type == "response.output_text.delta" else ""
            return text

    assert asyncio.run(ask()) == CAPITAL.answer_text


# ── our own ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_gptoss(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gptoss_dist", *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=90, check=False, cwd=ROOT)


def test_our_chat_with_a_server(server: Server):
    done = run_gptoss(
        "chat", f"job.target={server.url}", "generation=greedy", "--json", typed="What is 2 + 2?\nAnd times three?\n"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert [one["content"] for one in said["messages"] if one["role"] == "assistant"] == ["2 + 2 = 4.", "4 * 3 = 12."]


def test_our_bench_with_a_server(server: Server):
    lengths = ("job.input_tokens=16", "job.output_tokens=8", "job.warmup_tokens=2")
    done = run_gptoss("bench", f"job.target={server.url}", "job.streams=[4]", *lengths, "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["status"] == "done"
    assert row["finished"] == row["requests"] == 8
    assert row["total_output_tokens"] == 8 * 8


def test_nothing_is_left_behind(server: Server):
    assert server.held_pages() == 0
    assert server.metrics()["gptoss_requests_open"] == 0
    assert httpx.get(f"{server.url}/ready").status_code == 200

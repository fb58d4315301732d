"""`gptoss serve` with the toy on two real ranks: OpenAI's client, leaving clients, signals and killed ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serve_ranks import BIN, Server
from server_streams import check_chat, check_chat_stream, events_of

from gptoss_dist.model.tiny import tiny_checkpoint
from gptoss_dist.model.tiny_conversations import CONVERSATIONS, WEATHER_TOOL

pytestmark = pytest.mark.multi
ENDLESS = {"prompt": "On and on", "max_tokens": 4000, "ignore_eos": True, "temperature": 1.0, "seed": 1}


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    servers: list[Server] = []
    tiny_checkpoint()

    def begin(*words: str, **options) -> Server:
        servers.append(Server(tmp_path, *words, **options))
        return servers[-1].wait_until_it_serves()

    yield begin
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    tiny_checkpoint()
    one = Server(tmp_path_factory.mktemp("serve"), "job.model_name=openai/gpt-oss-20b", "job.date=null")
    try:
        yield one.wait_until_it_serves()
    finally:
        one.close()


class Reader(threading.Thread):
    """A client that reads an endless stream; how it ended is in `body` or `error`."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._url = f"{server.url}/v1/completions"
        self.begun = threading.Event()
        self.leave = threading.Event()
        self.body, self.error = "", None
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json={**ENDLESS, "stream": True}, timeout=60) as answer:
                for text in answer.iter_text():
                    self.body += text
                    self.begun.set()
                    if self.leave.is_set():
                        return
        except httpx.HTTPError as error:
            self.error = error


def under_load(server: Server, count: int = 3) -> list[Reader]:
    readers = [Reader(server) for _ in range(count)]
    for reader in readers:
        assert reader.begun.wait(60)
    return readers


def test_the_toy_answers_all_it_knows_whole_and_streaming(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        for one in CONVERSATIONS:
            asked = {
                "model": "openai/gpt-oss-20b",
                "messages": list(one.messages),
                "temperature": 0,
                "max_tokens": 100,
                "extra_body": {"tools": list(one.options.tools)} if one.options.tools else {},
            }
            answer = client.chat.completions.create(**asked)
            (whole,) = check_chat(answer.to_dict(exclude_unset=True))
            assert whole.content == one.answer_text, one.name
            assert whole.reasoning == one.analysis
            assert tuple((call["name"], call["arguments"]) for call in whole.calls) == one.tool_calls
            with client.chat.completions.create(**asked, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert text == one.answer_text


def test_a_call_is_forced_and_json_is_kept_to(server: Server):
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "max_tokens": 300}
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", json={**body, "tools": [WEATHER_TOOL], "tool_choice": named}, timeout=60
    )
    (one,) = check_chat(answer.json())
    assert one.finish_reason == "length" or [call["name"] for call in one.calls] == ["get_weather"]


def test_equal_seeds_give_equal_answers(server: Server):
    body = {**ENDLESS, "max_tokens": 12, "seed": 7, "logprobs": 2}
    first, second = (httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert all(value <= 0 for value in first["choices"][0]["logprobs"]["token_logprobs"])


def test_a_prompt_asked_again_is_found_in_the_cache(server: Server):
    text = "Nobody has asked this before: " + "count to ten. " * 20
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
    usages = [httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["usage"] for _ in range(2)]
    first, again = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    whole_pages = (usages[0]["prompt_tokens"] - 1) // 16 * 16
    assert first < whole_pages == again
    answer = httpx.post(f"{server.url}/v1/responses", json={"input": text, "max_output_tokens": 2}, timeout=60).json()
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == whole_pages


def test_the_guides_chat_line_streams_as_it_is(server: Server):
    body = {"messages": [{"role": "system", "content": "hello"}], "temperature": 0.9, "max_tokens": 100}
    body |= {"stream": True, "model": "openai/gpt-oss-20b"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    check_chat_stream(events_of(answer.text))


def test_clients_that_leave_free_their_pages(server: Server):
    readers = under_load(server, 4)
    assert server.held_pages() > 0
    for reader in readers:
        reader.leave.set()
    server.wait_until(lambda: server.held_pages() == 0)
    assert server.metrics()["gptoss_requests_open"] == 0
    assert [server.metrics()[f'gptoss_rank_up{{rank="{rank}"}}'] for rank in (0, 1)] == [1, 1]


def test_an_idle_server_steps_on(server: Server):
    time.sleep(2.5)
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_sigterm_lets_requests_end_and_then_ends_all_ranks(start):
    server = start("job.drain_s=60")
    finished: list[httpx.Response] = []
    body = {**ENDLESS, "max_tokens": 60, "stream": True}
    client = threading.Thread(
        target=lambda: finished.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60))
    )
    client.start()
    server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 1)
    server.process.send_signal(signal.SIGTERM)
    assert server.status() == 143
    client.join(60)
    assert finished[0].text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in finished[0].text
    assert server.err.count("stopped by SIGTERM") == 1
    assert "Traceback" not in server.err


def test_what_outlasts_the_drain_is_told_so(start):
    server = start("job.drain_s=4")
    readers = under_load(server)
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503, 3.9)
    assert server.status() == 143
    for reader in readers:
        reader.join(60)
        assert '"code":"shutting_down"' in reader.body
        assert reader.error is None
    assert "Traceback" not in server.err


def last_words(server: Server) -> tuple[list[int], list[float]]:
    """(what /ready answered, whether rank 1 is up by /metrics), in turn, until nothing answers any more."""
    ready: list[int] = []
    up: list[float] = []
    with httpx.Client(base_url=server.url, timeout=20) as client:
        try:
            while True:
                ready.append(client.get("/ready").status_code)
                lines = client.get("/metrics").text.splitlines()
                up += [float(line[-3:]) for line in lines if line.startswith('gptoss_rank_up{rank="1"}')]
        except httpx.HTTPError:
            return ready, up


def test_a_dead_rank_is_seen_by_ready_and_by_the_metrics_before_the_server_ends(start):
    server = start()
    readers = under_load(server)
    assert httpx.get(f"{server.url}/ready").status_code == 200
    os.kill(server.ranks()[1], signal.SIGKILL)
    ready, up = last_words(server)
    assert ready[-1] == 503
    assert ready == sorted(ready), "it does not become ready again"
    assert up[-1] == 0.0
    assert server.status(within_s=60) == 1
    for reader in readers:
        reader.join(60)
        assert '"message":"rank 1 failed."' in reader.body


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_rank_ends_the_server_and_tells_the_clients(start, rank: int):
    server = start()
    readers = under_load(server)
    os.kill(server.ranks()[rank], signal.SIGKILL)
    assert server.status(within_s=60) == 1
    for reader in readers:
        reader.join(60)
        if rank == 1:
            assert '"code":"engine_failed"' in reader.body, reader.body[-300:]
        assert "[DONE]" not in reader.body
    assert server.err.count(f"rank {rank}: its process ended without a word") == 1


def test_torchrun_starts_a_server_again_after_a_rank_was_killed(start):
    launcher = (str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", "--max-restarts=1")
    server = start(launcher=launcher)
    os.kill(server.ranks()[1], signal.SIGKILL)
    server.wait_until_it_serves(times=2)
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 5}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_a_port_in_use_is_one_line_before_anything_is_loaded(server: Server, tmp_path: Path):
    port = server.url.rpartition(":")[2]
    second = Server(tmp_path, f"job.port={port}")
    assert second.status() == 2
    assert second.err.count(f"job.port={port}: another program listens on 127.0.0.1:{port}.") == 1
    assert "loaded" not in second.err
    assert "Traceback" not in second.err

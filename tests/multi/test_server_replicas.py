"""Two replicas of the toy behind one server: who has computed a prefix gets the requests that begin with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest
from serve_ranks import Server
from server_streams import check_chat, check_chat_stream, events_of

from gptoss_dist.model.tiny import tiny_checkpoint

pytestmark = pytest.mark.multi
PAGE = 16
ENDLESS = {"prompt": "On and on", "max_tokens": 4000, "ignore_eos": True, "temperature": 1.0, "seed": 1, "stream": True}


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    tiny_checkpoint()
    one = Server(tmp_path, "job.date=null", plan=("plan=dp_tp", "plan.dp=2", "plan.tp=1"))
    try:
        yield one.wait_until_it_serves()
    finally:
        one.close()


def conversation(topic: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{topic}: " + f"{topic} is to be counted up to ten. " * 30}]


def ask(server: Server, messages: list[dict[str, str]], **fields) -> dict:
    """An answer of a few tokens; the request allows as much as the context holds, as most clients do."""
    body = {"messages": messages, "temperature": 0, **fields}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    check_chat(answer.json())
    return answer.json()


def cached(answer: dict) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def begin(client: openai.OpenAI) -> openai.Stream[openai.types.Completion]:
    """A stream without an end, its first event read."""
    asked = {name: value for name, value in ENDLESS.items() if name != "ignore_eos"}
    stream = client.completions.create(**asked, model="tiny", extra_body={"ignore_eos": True})
    next(stream)
    return stream


def running(server: Server) -> list[float]:
    seen = server.metrics()
    return [seen[f'gptoss_requests_running{{replica="{replica}"}}'] for replica in (0, 1)]


def test_requests_go_to_the_replica_that_has_their_prefix(server: Server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        first = begin(client)
        server.wait_until(lambda: running(server) == [1, 0])
        computed = {"apples": ask(server, conversation("apples"))}
        second = begin(client)
        server.wait_until(lambda: running(server) == [1, 1])
        first.close()
        server.wait_until(lambda: running(server) == [0, 1])
        computed["pears"] = ask(server, conversation("pears"))
        second.close()
    server.wait_until(lambda: running(server) == [0, 0])
    for topic, answer in computed.items():
        messages, before = conversation(topic), answer["usage"]["prompt_tokens"]
        for turn in range(3):
            answer = ask(server, messages)
            assert cached(answer) > before - 2 * PAGE, f"turn {turn} of {topic} went where its beginning is not"
            before = answer["usage"]["prompt_tokens"]
            said = answer["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    seen = server.metrics()
    kept = [seen[f'gptoss_kv_pages{{pool="full",replica="{one}",state="cached"}}'] for one in (0, 1)]
    assert min(kept) > computed["apples"]["usage"]["prompt_tokens"] // PAGE - 2, "each keeps a conversation"


def test_requests_that_differ_are_shared_and_answers_do_not_depend_on_where(server: Server):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    alone = ask(server, question)["choices"][0]["message"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        streams = [begin(client) for _ in range(4)]
        server.wait_until(lambda: running(server) == [2, 2])
        body = {"messages": question, "temperature": 0, "stream": True, "n": 2}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        choices, _ = check_chat_stream(events_of(answer.text), choices=2)
        assert [one.content for one in choices] == [alone["content"]] * 2
        for stream in streams:
            stream.close()
    server.wait_until(lambda: server.held_pages() == 0)


def test_a_killed_replica_ends_the_server_and_is_told_by_its_rank(server: Server):
    with httpx.stream("POST", f"{server.url}/v1/completions", json=ENDLESS, timeout=60) as line:
        pieces = line.iter_text()
        told = next(pieces)
        os.kill(server.ranks()[1], signal.SIGKILL)
        told += "".join(pieces)
    assert '"message":"rank 1 failed."' in told
    assert "[DONE]" not in told
    assert server.status() == 1

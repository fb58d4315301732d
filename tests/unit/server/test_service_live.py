"""Queues, clients that leave or read slowly, shutting down, and a rank that fails: on a scripted server."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import openai
import pytest
from live_server import MODEL, serving
from server_streams import check_chat, check_chat_stream, events_of

from gptoss_dist.server import chat_completions, front

SLOW = [{"match": "slow", "text": "word " * 200, "delay_s": 0.02}, {"text": "quick"}]


def body_of(text: str, **fields) -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def begin(server, text: str, **fields) -> socket.socket:
    """A request whose answer nobody has read yet."""
    request = httpx.Request("POST", f"{server.url}/v1/chat/completions", json=body_of(text, **fields))
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(20)
    line.connect((host, int(port)))
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    line.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{headers}\r\n".encode() + request.content)
    return line


def read_all(line: socket.socket) -> str:
    """The rest of the answer; the line is closed then."""
    content = b""
    with line:
        while piece := line.recv(65536):
            content += piece
            if content.endswith(b"0\r\n\r\n") or b"content-length" in content:
                break
    return content.decode()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(tmp_path, stream: bool):
    with serving(SLOW, tmp_path) as server:
        lines = [begin(server, "slow", stream=stream) for _ in range(3)]
        server.wait_until(lambda: server.metrics()['gptoss_requests_running{replica="0"}'] == 3)
        assert server.held_pages() > 0
        for line in lines:
            line.close()
        server.wait_until(lambda: server.held_pages() == 0, seconds=3)
        seen = server.metrics()
        assert seen["gptoss_requests_open"] == 0
        assert seen['gptoss_requests_total{finish="cancelled"}'] == 3
        server.engine.scheduler.check()


def test_a_client_that_leaves_the_queue_is_never_run(tmp_path):
    with serving(SLOW, tmp_path, max_running=1) as server, begin(server, "slow", stream=True) as first:
        server.wait_until(lambda: server.metrics()['gptoss_requests_running{replica="0"}'] == 1)
        server.wait_until(lambda: server.metrics()["gptoss_requests_queued"] == 0)
        leavers = [begin(server, "slow", stream=True), begin(server, "slow")]
        server.wait_until(lambda: server.metrics()["gptoss_requests_queued"] == 2)
        for leaver in leavers:
            leaver.close()
        server.wait_until(lambda: server.metrics()['gptoss_requests_total{finish="cancelled"}'] == 2)
        assert server.metrics()["gptoss_requests_queued"] == 0
        assert server.metrics()["gptoss_requests_open"] == 1
        assert b"200 OK" in first.recv(65536)


def test_all_but_those_who_leave_get_their_answers(tmp_path):
    with serving([{"text": "one two three " * 5, "delay_s": 0.002}], tmp_path, max_running=8) as server:
        results: list[str] = []

        def stay() -> None:
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi", stream=True), timeout=30)
            (one,), _ = check_chat_stream(events_of(answer.text))
            results.append(one.content)

        threads = [threading.Thread(target=stay) for _ in range(20)]
        leavers = [begin(server, "hi", stream=True) for _ in range(10)]
        for thread in threads:
            thread.start()
        for leaver in leavers:
            leaver.close()
        for thread in threads:
            thread.join(20)
        assert results == ["one two three " * 5] * 20
        server.wait_until(lambda: server.held_pages() == 0)


def test_too_many_waiting_are_told_to_come_back(tmp_path):
    with serving(SLOW, tmp_path, max_running=1, max_waiting=2) as server:
        lines = [begin(server, "slow", stream=True)]
        server.wait_until(lambda: server.metrics()['gptoss_requests_running{replica="0"}'] == 1)
        server.wait_until(lambda: server.metrics()["gptoss_requests_queued"] == 0)
        lines += [begin(server, "slow", stream=True) for _ in range(2)]
        server.wait_until(lambda: server.metrics()["gptoss_requests_queued"] == 2)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi"))
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "queue_full"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        with client, pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**body_of("hi", n=1))
        for line in lines:
            line.close()
        server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 0)
        check_chat(httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi")).json())


def test_requests_wait_while_they_are_prepared_too(tmp_path, monkeypatch):
    go_on = threading.Event()
    prompt_of = chat_completions.prompt_of
    monkeypatch.setattr(chat_completions, "prompt_of", lambda *given: go_on.wait(30) and prompt_of(*given))
    with serving(SLOW, tmp_path, max_waiting=1) as server:
        line = begin(server, "hi")
        server.wait_until(lambda: server.metrics()["gptoss_requests_queued"] == 1)
        for path, body in (("chat/completions", body_of("hi")), ("responses", {"input": "hi"})):
            answer = httpx.post(f"{server.url}/v1/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        go_on.set()
        with line:
            told = b""
            while b"quick" not in told:
                told += line.recv(65536)
        assert server.metrics()["gptoss_requests_queued"] == 0
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi")).status_code == 200


def test_more_than_could_ever_wait_is_no_reason_to_come_back(tmp_path):
    with serving(SLOW, tmp_path, max_waiting=2) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi", n=3))
        assert answer.status_code == 400
        assert "job.max_waiting is 2" in answer.json()["error"]["message"]
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi", n=2)).status_code == 200


def test_a_slow_reader_stalls_nobody_and_loses_its_request_when_far_behind(tmp_path):
    book = [{"match": "long", "text": "many words here " * 2500}, {"text": "quick"}]
    with serving(book, tmp_path, max_behind=500, cache_tokens=16384) as server:
        line = begin(server, "long", stream=True, logprobs=True, top_logprobs=20)  # and reads nothing
        server.wait_until(lambda: server.metrics()['gptoss_requests_total{finish="cancelled"}'] == 1, seconds=30)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi"), timeout=10)
        assert check_chat(answer.json())[0].content == "quick"
        server.wait_until(lambda: server.held_pages() == 0)
        told = read_all(line)
        assert "500 events behind" in told
        assert "[DONE]" not in told


def test_a_drain_takes_nothing_new_and_lets_the_others_end(tmp_path):
    with serving([{"text": "word " * 20, "delay_s": 0.03}], tmp_path) as server:
        line = begin(server, "hi", stream=True)
        server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 1)
        server.service.drain(20.0)
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi"))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert not server.service.is_over.is_set()
        told = read_all(line)
        assert "[DONE]" in told
        assert '"finish_reason":"stop"' in told
        server.wait_until(server.service.is_over.is_set)


def test_what_outlasts_the_drain_gets_an_error_event(tmp_path):
    with serving([{"text": "word " * 500, "delay_s": 0.03}], tmp_path) as server:
        line, other = begin(server, "hi", stream=True), begin(server, "hi")
        server.wait_until(lambda: server.metrics()["gptoss_requests_open"] == 2)
        server.service.drain(0.2)
        assert server.service.is_over.wait(30)
        told = read_all(line)
        assert '"code":"shutting_down"' in told
        assert "[DONE]" not in told
        assert read_all(other).startswith("HTTP/1.1 503 ")


def test_clients_that_neither_take_nor_send_are_cut_when_the_server_stops(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(front, "FLUSH_S", 0.2)
    book = [{"match": "long", "text": "many words here " * 2500}]
    with serving(book, tmp_path, cache_tokens=16384) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reads_nothing = begin(server, "long", stream=True, logprobs=True, top_logprobs=20)
        with reads_nothing, socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n{")
            server.wait_until(lambda: server.metrics()["gptoss_generation_tokens_total"] > 4000, seconds=30)
            server.stop()
            assert not server.front.is_running
    assert not caplog.records


def test_an_idle_connection_outlives_those_of_clients_and_proxies(tmp_path):
    with serving([{"text": "quick"}], tmp_path) as server, httpx.Client() as client:
        assert client.get(f"{server.url}/health").status_code == 200
        (connection,) = server.front._server.server_state.connections
        server.wait_until(lambda: connection.timeout_keep_alive_task is not None)  # the answer is read before
        assert connection.timeout_keep_alive_task.when() - connection.loop.time() > 60


def test_a_failure_ends_every_stream_with_an_error_at_once(tmp_path):
    with serving([{"text": "word " * 500, "delay_s": 0.03}], tmp_path) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            stream = client.chat.completions.create(**body_of("hi"), stream=True)
            next(iter(stream))
            started = time.monotonic()
            server.service.fail("rank 1 failed.")
            with pytest.raises(openai.APIError, match=r"rank 1 failed\."):
                for _ in stream:
                    pass
            assert time.monotonic() - started < 10
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi")).status_code == 503
        server.service._state = server.service.state.ready  # so that the fixture can drain it


def test_while_the_model_is_loaded_the_server_lives_and_is_not_ready(tmp_path):
    with serving(SLOW, tmp_path, loaded=False) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").json() == {"status": "loading"}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi"))
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert httpx.get(f"{server.url}/v1/models").status_code == 503


def test_metrics_count_what_was_done(tmp_path):
    with serving([{"text": "one two three"}], tmp_path) as server:
        answers = [httpx.post(f"{server.url}/v1/chat/completions", json=body_of("hi")).json() for _ in range(3)]
        seen = server.metrics()
        assert seen["gptoss_generation_tokens_total"] == sum(one["usage"]["completion_tokens"] for one in answers)
        assert seen["gptoss_prompt_tokens_total"] == sum(one["usage"]["prompt_tokens"] for one in answers)
        assert seen['gptoss_requests_total{finish="stop"}'] == 3
        assert seen["gptoss_time_to_first_token_seconds_count"] == 3
        assert seen["gptoss_request_seconds_count"] == 3
        assert seen["gptoss_inter_token_seconds_count"] == seen["gptoss_generation_tokens_total"] - 3
        assert seen['gptoss_http_requests_total{path="/v1/chat/completions",status="200"}'] == 3
        assert seen['gptoss_rank_up{rank="0"}'] == 1
        for pool in ("full", "sliding"):
            states = [
                seen[f'gptoss_kv_pages{{pool="{pool}",replica="0",state="{one}"}}']
                for one in ("free", "held", "cached")
            ]
            assert sum(states) == seen[f'gptoss_kv_pages_in_all{{pool="{pool}",replica="0"}}']

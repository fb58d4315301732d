"""What outlasts a request: conversations, references, background responses, pages of input items."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from live_server import ANALYSIS, CALL, FINAL, MODEL, serving
from response_streams import check_response, check_response_stream, response_events

from gptoss_dist.harmony.vocab import load_encoding
from gptoss_dist.server import responses_begin
from gptoss_dist.server.responses_output import OutputWriter
from gptoss_dist.server.store import ResponseStore

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
NEXT = "<|end|><|start|>assistant"
BOOK = [
    {
        "match": "weather",
        "harmony": ANALYSIS.format("Look it up.")
        + f"<|channel|>commentary<|message|>One moment.{NEXT}"
        + CALL.format("get_weather", '{"city":"Paris"}<|call|>'),
    },
    {"match": "broken", "harmony": CALL.format("get_wéather", '{"city":<|call|>')},
    {"match": "cut call", "harmony": CALL.format("get_weather", '{"city":'), "finish": "length"},
    {"match": "nothing", "tokens": [200002]},
    {"match": "long", "text": "one two three four " * 250},
    {"match": "slow", "text": "one two three four " * 100, "delay_s": 0.02},
    {"match": "mixed", "harmony": f"<|channel|>commentary<|message|>Well.{NEXT}" + FINAL.format("Yes.")},
    {"harmony": ANALYSIS.format("Think.") + FINAL.format("Hello.")},
]


class Client:
    """A server, and the prompts that its engine got."""

    def __init__(self, server) -> None:
        self.server, self.prompts = server, []
        choose = server.engine._choose
        server.engine._choose = lambda prompt: (self.prompts.append(list(prompt)), choose(prompt))[1]

    def call(self, method: str, path: str = "", **fields) -> httpx.Response:
        return httpx.request(method, f"{self.server.url}/v1/responses{path}", timeout=30, **fields)

    def ask(self, given, **fields) -> dict:
        answer = self.call("POST", json={"input": given, **fields})
        assert answer.status_code == 200, answer.text
        check_response(answer.json())
        return answer.json()

    def chat(self, *messages: dict, **fields) -> dict:
        body = {"messages": messages, **fields}
        answer = httpx.post(f"{self.server.url}/v1/chat/completions", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]

    def get(self, name: str) -> dict:
        answer = self.call("GET", f"/{name}")
        assert answer.status_code == 200, answer.text
        check_response(answer.json())
        return answer.json()

    def poll(self, name: str) -> dict:
        deadline = time.monotonic() + 20
        while (response := self.get(name))["status"] in ("queued", "in_progress"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return response


@contextlib.contextmanager
def client_of(folder, **fields):
    with serving(BOOK, folder, **fields) as server:
        yield Client(server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with client_of(tmp_path_factory.mktemp("state")) as one:
        yield one


@pytest.fixture
def client(shared):
    shared.prompts.clear()
    return shared


def error_of(answer: httpx.Response, status: int, param: str | None) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    return error


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("question", ["hi", "weather", "nothing", "mixed"])
def test_a_continued_response_is_the_prompt_of_the_whole_chat(client, question):
    """The chat gets what its own answers said; harmony itself leaves out the reasoning of a closed turn."""
    system, first, second = ({"role": "system", "content": "Be kind."}, *user(question), *user("and now?"))
    answer = client.chat(system, first, tools=[CHAT_TOOL], reasoning_effort="high")
    calls = answer.get("tool_calls", [])
    results = [{"role": "tool", "tool_call_id": one["id"], "content": "sunny"} for one in calls]
    third = client.chat(system, first, answer, *results, second, tools=[CHAT_TOOL], reasoning_effort="high")
    client.chat(system, first, answer, *results, second, third, *user("more"), tools=[CHAT_TOOL])

    fields = {"instructions": "Be kind.", "tools": [TOOL]}
    one = client.ask(question, **fields, reasoning={"effort": "high"})
    outputs = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "sunny"}
        for item in one["output"]
        if item["type"] == "function_call"
    ]
    assert len(outputs) == len(calls)
    given = [*outputs, second]
    two = client.ask(given, previous_response_id=one["id"], **fields, reasoning={"effort": "high"})
    three = client.ask("more", previous_response_id=two["id"], **fields)
    chats, responses = client.prompts[:3], client.prompts[3:]
    assert responses == chats
    assert three["usage"]["input_tokens"] == len(chats[2])


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_reasoning_is_kept_while_a_call_is_open_and_not_after(client):
    one = client.ask("weather", tools=[TOOL])
    call = next(item for item in one["output"] if item["type"] == "function_call")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    client.ask([result], previous_response_id=one["id"], tools=[TOOL])
    assert "Look it up." in text_of(client.prompts[1])
    assert "One moment." in text_of(client.prompts[1])
    client.ask("and?", previous_response_id=client.ask("hi")["id"])
    assert "Think." not in text_of(client.prompts[3])
    assert "Hello." in text_of(client.prompts[3])


def text_of(tokens: list[int]) -> str:
    return load_encoding().decode(tokens)


def test_items_sent_back_by_the_client_are_the_same_as_a_previous_response(client):
    one = client.ask("weather", tools=[TOOL])
    call_id = one["output"][-1]["call_id"]
    result = {"type": "function_call_output", "call_id": call_id, "output": [{"type": "input_text", "text": "sunny"}]}
    references = [{"type": "item_reference", "id": item["id"]} for item in one["output"][:-1]] + [one["output"][-1]]
    bare = [{"id": item["id"]} for item in one["output"]]
    for given, fields in (
        ([result], {"previous_response_id": one["id"]}),
        ([*user("weather"), *one["output"], result], {"store": False}),
        ([*user("weather"), *references, result], {}),
        ([*user("weather"), *bare, result], {}),
    ):
        client.ask(given, tools=[TOOL], **fields)
    assert client.prompts[2:] == [client.prompts[1]] * 3


def test_instructions_are_not_carried_over(client):
    one = client.ask("hi", instructions="Speak like a pirate.")
    client.ask("again", previous_response_id=one["id"])
    assert "pirate" in text_of(client.prompts[0])
    assert "pirate" not in text_of(client.prompts[1])
    assert "Hello." in text_of(client.prompts[1])


@pytest.mark.parametrize("question", ["broken", "cut call"])
def test_a_conversation_goes_on_after_a_call_that_is_no_json(client, question):
    one = client.ask(question, tools=[TOOL])
    call = one["output"][-1]
    assert call["type"] == "function_call"
    client.ask("hi", previous_response_id=one["id"], tools=[TOOL])
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "error: no JSON"}
    client.ask([result], previous_response_id=one["id"], tools=[TOOL])
    assert "error: no JSON" in text_of(client.prompts[-1])


def test_messages_of_the_client_stay_messages_of_their_own(client):
    texts = ["one", "two"]
    messages = [{"role": "assistant", "content": text} for text in texts]
    client.chat(*user("a"), *messages, *user("b"))
    client.ask([*user("a"), *messages, *user("b")])
    assert client.prompts[0] == client.prompts[1]


def test_what_is_not_stored_cannot_be_continued(client):
    one = client.ask("hi", store=False)
    assert one["store"] is False
    error = error_of(
        client.call("POST", json={"input": "x", "previous_response_id": one["id"]}), 400, "previous_response_id"
    )
    assert error["code"] == "previous_response_not_found"
    error_of(client.call("GET", f"/{one['id']}"), 404, "id")
    reference = [{"type": "item_reference", "id": one["output"][0]["id"]}]
    error_of(client.call("POST", json={"input": reference}), 404, "input.[0].id")


def test_a_deleted_response_is_gone_and_those_after_it_stay(client):
    one = client.ask("hi")
    two = client.ask("again", previous_response_id=one["id"])
    gone = client.call("DELETE", f"/{one['id']}")
    assert gone.json() == {"id": one["id"], "object": "response", "deleted": True}
    error_of(client.call("DELETE", f"/{one['id']}"), 404, "id")
    error_of(client.call("GET", f"/{one['id']}"), 404, "id")
    assert client.get(two["id"]) == two
    client.ask("more", previous_response_id=two["id"])
    assert text_of(client.prompts[-1]).count("Hello.") == 2


def test_the_store_evicts_what_was_used_longest_ago(tmp_path):
    with client_of(tmp_path, store=ResponseStore(2, 10**6)) as client:
        names = [client.ask("hi")["id"] for _ in range(2)]
        client.get(names[0])
        client.ask("hi")
        assert client.call("GET", f"/{names[0]}").status_code == 200
        error_of(client.call("GET", f"/{names[1]}"), 404, "id")


def test_streamed_responses_are_stored_before_their_last_event(client):
    answer = client.call("POST", json={"input": "hi", "stream": True})
    response = check_response_stream(response_events(answer.text))
    assert client.get(response["id"]) == response


# ── truncation ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_that_is_too_long_is_refused_or_loses_its_oldest_turns(client):
    turns = [one for number in range(12) for one in (*user(f"<{number}> " + "word " * 1000), said("fine"))]
    given = [{"role": "developer", "content": "Rule one."}, *turns, *user("hi")]
    error = error_of(client.call("POST", json={"input": given}), 400, "input")
    assert error["code"] == "context_length_exceeded"
    one = client.ask(given, truncation="auto")
    text = text_of(client.prompts[0])
    assert "Rule one." in text
    assert "<5>" not in text
    assert "<11>" in text
    assert one["usage"]["input_tokens"] + 1024 <= 8192
    assert one["dropped_items"] % 2 == 0
    kept = [number for number in range(12) if f"<{number}>" in text]
    assert kept == list(range(one["dropped_items"] // 2, 12))
    assert one["usage"]["input_tokens"] + 1024 + 1020 > 8192  # one turn more would not have fitted
    short = client.ask("hi", truncation="auto")
    assert "dropped_items" not in short
    error_of(client.call("POST", json={"input": "word " * 9000, "truncation": "auto"}), 400, "input")


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_input_items_come_in_pages(client):
    given = [{"role": "user", "content": f"number {number}"} for number in range(5)]
    one = client.ask(given)
    two = client.ask("more", previous_response_id=one["id"])

    def page(name: str, **query) -> dict:
        return client.call("GET", f"/{name}/input_items", params=query).json()

    newest = page(one["id"])
    texts = [item["content"][0]["text"] for item in newest["data"]]
    assert texts == [f"number {number}" for number in (4, 3, 2, 1, 0)]
    assert newest["has_more"] is False
    assert (newest["first_id"], newest["last_id"]) == (newest["data"][0]["id"], newest["data"][-1]["id"])
    seen, after = [], None
    while True:
        part = page(one["id"], order="asc", limit=2, **({"after": after} if after else {}))
        seen += [item["content"][0]["text"] for item in part["data"]]
        after = part["last_id"]
        if not part["has_more"]:
            break
    assert seen == texts[::-1]
    assert [item["content"][0]["text"] for item in page(two["id"])["data"]] == ["more"]
    error_of(client.call("GET", f"/{one['id']}/input_items", params={"after": "nobody"}), 400, "after")
    for query in ({"limit": 0}, {"limit": 101}, {"order": "up"}):
        error_of(client.call("GET", f"/{one['id']}/input_items", params=query), 400, next(iter(query)))
    error_of(client.call("GET", f"/{one['id']}?starting_after=-1"), 400, "starting_after")
    error_of(client.call("GET", "/resp_none/input_items"), 404, "id")


# ── in the background ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_background_response_is_polled_until_it_is_complete(client):
    begun = client.ask("hi", background=True)
    assert begun["status"] == "queued"
    done = client.poll(begun["id"])
    assert done["status"] == "completed"
    assert done["output"][-1]["content"][0]["text"] == "Hello."
    assert client.ask("more", previous_response_id=begun["id"])["status"] == "completed"
    again = client.call("POST", f"/{begun['id']}/cancel")
    assert again.json() == done  # it has ended, and stays as it is


def test_a_background_response_is_cancelled_and_its_pages_are_free(client):
    begun = client.ask("slow", background=True)
    client.server.wait_until(lambda: client.get(begun["id"])["status"] == "in_progress")
    error_of(client.call("POST", json={"input": "x", "previous_response_id": begun["id"]}), 400, "previous_response_id")
    assert client.call("GET", f"/{begun['id']}/input_items").json()["data"][0]["content"][0]["text"] == "slow"
    client.server.wait_until(client.server.held_pages)
    cancelled = client.call("POST", f"/{begun['id']}/cancel").json()
    check_response(cancelled)
    assert cancelled["status"] == "cancelled"
    assert client.get(begun["id"]) == cancelled
    assert client.call("POST", f"/{begun['id']}/cancel").json() == cancelled
    client.server.wait_until(lambda: client.server.held_pages() == 0)


def test_only_background_responses_are_cancelled(client):
    one = client.ask("hi")
    assert "background" in error_of(client.call("POST", f"/{one['id']}/cancel"), 400, None)["message"]
    error_of(client.call("POST", "/resp_none/cancel"), 404, "id")


def test_deleting_ends_a_background_response(client):
    begun = client.ask("slow", background=True)
    client.server.wait_until(client.server.held_pages)
    assert client.call("DELETE", f"/{begun['id']}").json()["deleted"] is True
    error_of(client.call("GET", f"/{begun['id']}"), 404, "id")
    client.server.wait_until(lambda: client.server.held_pages() == 0)


def test_a_background_stream_goes_on_without_its_reader_and_is_taken_up_anywhere(client):
    fields = {"input": "slow", "background": True, "stream": True, "max_output_tokens": 40}
    with httpx.stream("POST", f"{client.server.url}/v1/responses", json=fields, timeout=30) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if "output_text.delta" in text:
                break
    first = response_events(text[: text.rindex("\n\n") + 2])
    check_response_stream(first, ended=False)
    name, last = first[0]["response"]["id"], first[-1]["sequence_number"]
    path = f"/{name}?stream=true"
    rest = response_events(client.call("GET", f"{path}&starting_after={last}").text)  # while it is under way
    response = check_response_stream([*first, *rest])
    assert response == client.get(name)
    assert response_events(client.call("GET", path).text) == [*first, *rest]  # when it has ended
    assert client.call("GET", f"{path}&starting_after={rest[-1]['sequence_number']}").text == ""


def test_a_background_stream_that_is_cancelled_closes_its_items_and_says_so(client):
    begun = httpx.post(f"{client.server.url}/v1/responses", json={"input": "hi", "background": True}, timeout=30).json()
    error_of(client.call("GET", f"/{begun['id']}?stream=true"), 400, "stream")
    fields = {"input": "slow", "background": True, "stream": True}
    with httpx.stream("POST", f"{client.server.url}/v1/responses", json=fields, timeout=30) as answer:
        text, name = "", None
        for piece in answer.iter_text():
            text += piece
            if name is None and "output_text.delta" in text:
                name = response_events(text.partition("\n\n")[0] + "\n\n")[0]["response"]["id"]
                assert client.call("POST", f"/{name}/cancel").json()["status"] == "cancelled"
    events = response_events(text)
    ended = check_response_stream(events)
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "response_cancelled")
    assert [item["status"] for item in ended["output"]] == ["incomplete"]
    assert client.get(name)["output"] == ended["output"]


def test_the_log_of_a_background_stream_is_let_go_with_it(tmp_path):
    store = ResponseStore(10, 10**6)
    with client_of(tmp_path, store=store) as client:
        answer = client.call("POST", json={"input": "hi", "background": True, "stream": True})
        name = response_events(answer.text)[0]["response"]["id"]
        assert store.bytes > len(answer.text)
        client.call("DELETE", f"/{name}")
        assert store.bytes == 0


def test_background_responses_that_begin_at_once_are_no_more_than_can_be_kept(tmp_path, monkeypatch):
    go_on = threading.Event()
    prompt_of = responses_begin.prompt_of
    monkeypatch.setattr(responses_begin, "prompt_of", lambda *given: go_on.wait(30) and prompt_of(*given))
    with client_of(tmp_path, store=ResponseStore(1, 10**6)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.ask, "hi", background=True)
        client.server.wait_until(lambda: client.server.metrics()["gptoss_requests_queued"] == 1)
        assert client.call("POST", json={"input": "hi", "background": True}).status_code == 429
        go_on.set()
        assert client.poll(first.result()["id"])["status"] == "completed"


def test_a_long_background_stream_pushes_out_nothing_that_is_stored(tmp_path):
    store = ResponseStore(10, 150_000)
    with client_of(tmp_path, store=store) as client:
        kept = client.ask("hi")["id"]
        answer = client.call("POST", json={"input": "long", "background": True, "stream": True})
        assert len(answer.content) > store.most_bytes
        name = check_response_stream(response_events(answer.text))["id"]  # who follows misses nothing
        assert client.get(kept)["status"] == client.get(name)["status"] == "completed"
        error = error_of(client.call("GET", f"/{name}?stream=true"), 400, "starting_after")
        assert error["code"] == "events_gone"
        after = int(re.findall("Events 0 to ([0-9]+)", error["message"])[0])
        rest = response_events(client.call("GET", f"/{name}?stream=true&starting_after={after}").text)
        assert rest[0]["sequence_number"] == after + 1
        assert rest[-1]["type"] == "response.completed"


def test_a_background_response_that_fails_says_so(client):
    begun = client.ask("slow", background=True)
    client.server.wait_until(client.server.held_pages)
    client.server.service.fail("rank 1 failed.")
    failed = client.poll(begun["id"])
    assert failed["status"] == "failed"
    assert failed["error"]["message"] == "rank 1 failed."
    client.server.service._state = client.server.service.state.ready  # so that the fixture can drain it


def test_a_defect_ends_a_background_response_and_not_the_server(client, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("a defect")

    answers = []
    with monkeypatch.context() as patch:
        patch.setattr(OutputWriter, "_write", broken)
        answers += [client.poll(client.ask("hi", background=True)["id"])]
        answer = client.call("POST", json={"input": "hi", "background": True, "stream": True})
        answers.append(check_response_stream_that_broke(response_events(answer.text)))
    for failed in answers:
        assert failed["status"] == "failed"
        assert failed["id"] in failed["error"]["message"]
        assert failed["id"] in caplog.text
    assert client.ask("hi")["status"] == "completed"


def check_response_stream_that_broke(events: list[dict]) -> dict:
    assert [event["type"] for event in events[-3:]] == [
        "response.content_part.done",
        "response.output_item.done",
        "response.failed",
    ]
    return check_response_stream(events)


@pytest.mark.parametrize("limits", [(0, 10**6), (10, 0)])
def test_background_needs_a_store(client, tmp_path, limits):
    error_of(client.call("POST", json={"input": "hi", "background": True, "store": False}), 400, "store")
    with client_of(tmp_path, store=ResponseStore(*limits)) as none:
        error_of(none.call("POST", json={"input": "hi", "background": True}), 400, "background")
        error_of(none.call("GET", f"/{none.ask('hi')['id']}"), 404, "id")


def test_more_background_responses_than_can_be_kept_are_told_to_come_back(tmp_path):
    with client_of(tmp_path, store=ResponseStore(2, 10**6)) as client:
        names = [client.ask("slow", background=True)["id"] for _ in range(2)]
        answer = client.call("POST", json={"input": "slow", "background": True})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        for name in names:
            client.call("POST", f"/{name}/cancel")
        assert json.loads(client.call("GET", f"/{names[1]}").text)["status"] == "cancelled"
        assert client.ask("hi", background=True, model=MODEL)["status"] == "queued"

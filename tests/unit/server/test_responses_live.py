"""/v1/responses of a scripted server: whatever the model says, as items and as a stream of events."""

from __future__ import annotations

import json
import random
import socket

import httpx
import pytest
from live_server import ANALYSIS, CALL, FINAL, MODEL, serving
from response_streams import check_response, check_response_stream, response_events

from gptoss_dist.harmony.vocab import load_encoding

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
NEXT = "<|end|><|start|>assistant"
ODD = {
    "two analyses and a preamble": (
        ANALYSIS.format("One.")
        + f"<|channel|>commentary<|message|>Look.{NEXT}"
        + ANALYSIS.format("\nTwo.")
        + FINAL.format("Done."),
        [("reasoning", "One."), ("commentary", "Look."), ("reasoning", "\nTwo."), ("final_answer", "Done.")],
    ),
    "no header at all": ("just words", [("final_answer", "just words")]),
    "half a header": ("<|channel|>analysis", [("final_answer", "")]),
    "unknown channel": ("<|channel|>secret<|message|>text<|return|>", [("final_answer", "text")]),
    "tokens everywhere": (
        "<|start|><|message|>a<|message|>b<|constrain|>c<|end|><|start|><|channel|>final<|message|>d<|call|>",
        [("final_answer", "abc"), ("final_answer", "d")],
    ),
    "another speaks": (
        "<|channel|>final<|message|>a<|end|><|start|>user<|message|>b<|return|>",
        [("final_answer", "a"), ("reasoning", "b")],
    ),
    "built-in tool": (
        "<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        [("reasoning", "print(1)"), ("final_answer", "")],
    ),
    "only an end": ("<|return|>", [("final_answer", "")]),
    "only an analysis": ("<|channel|>analysis<|message|>Hm.<|return|>", [("reasoning", "Hm."), ("final_answer", "")]),
    "empty messages": (
        f"<|channel|>analysis<|message|>{NEXT}<|channel|>final<|message|><|return|>",
        [("reasoning", ""), ("final_answer", "")],
    ),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    book = [{"match": f"<{name}>", "harmony": said} for name, (said, _) in ODD.items()]
    with serving(book, tmp_path_factory.mktemp("odd")) as live:
        yield live


def ask(server, question, **fields) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/responses", json={"model": MODEL, "input": question, **fields}, timeout=30)


def whole(server, question, **fields) -> dict:
    answer = ask(server, question, **fields)
    assert answer.status_code == 200, answer.text
    check_response(answer.json())
    return answer.json()


def streamed(server, question, **fields) -> dict:
    answer = ask(server, question, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return check_response_stream(response_events(answer.text))


def said(response: dict) -> list[tuple[str, str]]:
    out = []
    for item in response["output"]:
        if item["type"] == "function_call":
            out.append((item["name"], item["arguments"]))
        else:
            out.append((item.get("phase", item["type"]), "".join(part["text"] for part in item["content"])))
    return out


@pytest.mark.parametrize(
    ("text", "fields", "items", "status"),
    [
        ("hi", {}, [("reasoning", "Think a bit."), ("final_answer", "Hello, wörld! STOP here.")], "completed"),
        ("hi", {"stop": "STOP"}, [("reasoning", "Think a bit."), ("final_answer", "Hello, wörld! ")], "completed"),
        ("hi", {"max_output_tokens": 5}, [("reasoning", "Think a")], "incomplete"),
        ("hi", {"max_output_tokens": 14}, [("reasoning", "Think a bit."), ("final_answer", "Hello")], "incomplete"),
        ("emoji", {}, [("final_answer", "a😀b 日本 👨‍👩‍👧 ü")], "completed"),
        ("cut in reasoning", {}, [("reasoning", "I think and think")], "incomplete"),
        ("weather", {}, [("reasoning", "Call it."), ("commentary", '{"city":"Paris"}')], "completed"),
        ("weather", {"tools": [WEATHER]},
            [("reasoning", "Call it."), ("get_weather", '{"city":"Paris"}')], "completed"),
        ("weather", {"tools": [WEATHER], "tool_choice": "none"},
            [("reasoning", "Call it."), ("commentary", '{"city":"Paris"}')], "completed"),
        ("preamble", {"tools": [WEATHER]}, [("commentary", "Let me look."), ("get_weather", "{}")], "completed"),
        ("twice", {"tools": [WEATHER]},
            [("get_weather", '{"city":"Paris"}'), ("get_weather", '{"city":"Rome"}')], "completed"),
        ("twice", {"tools": [WEATHER], "parallel_tool_calls": False},
            [("get_weather", '{"city":"Paris"}')], "completed"),
    ],
)  # fmt: skip
def test_what_the_model_says_becomes_items(server, text, fields, items, status):
    for one in (whole(server, text, **fields), streamed(server, text, **fields)):
        assert said(one) == items
        assert one["status"] == status
        if status == "incomplete":
            assert one["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("case", ODD)
def test_malformed_harmony_is_text_and_every_item_closes(odd, case):
    for one in (whole(odd, f"<{case}>"), streamed(odd, f"<{case}>"), streamed(odd, f"<{case}>", tools=[WEATHER])):
        assert said(one) == ODD[case][1]
        assert one["status"] == "completed"


@pytest.mark.parametrize("cut", range(1, 24))
def test_an_answer_may_be_cut_after_any_token(server, cut):
    one = streamed(server, "weather", tools=[WEATHER], max_output_tokens=cut)
    same = whole(server, "weather", tools=[WEATHER], max_output_tokens=cut)
    assert said(one) == said(same)
    assert one["usage"]["output_tokens"] == min(cut, one["usage"]["output_tokens"])
    if one["status"] == "incomplete" and one["output"]:
        assert {item["status"] for item in one["output"][:-1]} <= {"completed"}


def test_random_tokens_never_break_a_stream(tmp_path):
    chance = random.Random(11)
    words = load_encoding().encode("assistant analysis final to=functions.f json {} user é")
    controls = [199998, 199999, 200000, 200001, 200002, 200003, 200005, 200006, 200007, 200008, 200012, 201087]
    book = []
    for number in range(25):
        tokens = [chance.choice(controls if chance.random() < 0.5 else words) for _ in range(chance.randrange(1, 40))]
        book.append({"match": f"<{number}>", "tokens": tokens, "finish": chance.choice(["stop", "length"])})
    with serving(book, tmp_path) as wild:
        for number in range(25):
            one = streamed(wild, f"<{number}>", tools=[WEATHER])
            assert said(whole(wild, f"<{number}>", tools=[WEATHER])) == said(one)


def test_log_probabilities_come_where_they_are_asked_for(server):
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for one in (whole(server, "emoji", **asked), streamed(server, "emoji", **asked)):
        (part,) = one["output"][0]["content"]
        assert b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode() == part["text"]
        assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    assert whole(server, "emoji")["output"][0]["content"][0]["logprobs"] == []
    only = whole(server, "emoji", include=["message.output_text.logprobs"])
    assert all(token["top_logprobs"] == [] for token in only["output"][0]["content"][0]["logprobs"])


def test_a_request_is_repeated_in_its_response(server):
    fields = {
        "instructions": "Be brief.",
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 100,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "truncation": "auto",
        "user": "me",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "top_logprobs": 1,
    }
    one = whole(
        server,
        "json",
        **fields,
        reasoning={"effort": "high", "summary": "auto"},
        text={"format": {"type": "json_object"}, "verbosity": "low"},
        tools=[{**WEATHER, "strict": False}],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
        service_tier="auto",
        include=["reasoning.encrypted_content"],
        store=True,
        brand_new=[1],
    )
    assert {name: one[name] for name in fields} == fields
    assert one["reasoning"] == {"effort": "high", "summary": "auto"}
    assert one["text"] == {"format": {"type": "json_object"}, "verbosity": "low"}
    assert one["tools"] == [{**WEATHER, "description": None, "strict": False}]
    assert one["service_tier"] == "default"
    assert one["model"] == MODEL


def test_auto_may_be_said_where_there_are_no_tools(server):
    one = whole(server, "hi", tool_choice="auto", tools=[])
    assert said(one)[1] == ("final_answer", "Hello, wörld! STOP here.")
    assert (one["tool_choice"], one["tools"]) == ("auto", [])


def test_nulls_are_as_if_the_fields_were_not_there(server):
    names = ("temperature", "top_p", "tools", "tool_choice", "store", "stream", "background", "text", "reasoning")
    names += ("previous_response_id", "instructions", "metadata", "include", "truncation", "max_output_tokens", "user")
    assert said(whole(server, "hi", **dict.fromkeys(names)))[1] == ("final_answer", "Hello, wörld! STOP here.")


def test_a_client_that_leaves_frees_its_pages(tmp_path):
    with serving([{"text": "word " * 200, "delay_s": 0.02}], tmp_path) as server:
        lines = [begin(server, stream=stream) for stream in (True, False, True)]
        server.wait_until(lambda: server.metrics()['gptoss_requests_running{replica="0"}'] == 3)
        for line in lines:
            line.close()
        server.wait_until(lambda: server.held_pages() == 0, seconds=5)
        assert server.metrics()["gptoss_requests_open"] == 0


def begin(server, **fields) -> socket.socket:
    """A request whose answer nobody reads."""
    content = json.dumps({"model": MODEL, "input": "slow", **fields}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=20)
    head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    line.sendall(f"POST /v1/responses HTTP/1.1\r\n{head}".encode() + content)
    return line


def test_a_failure_of_the_engine_is_the_last_event(tmp_path):
    with serving([{"text": "word " * 500, "delay_s": 0.02}], tmp_path) as server:
        with httpx.stream("POST", f"{server.url}/v1/responses", json={"input": "hi", "stream": True}) as answer:
            text = ""
            for piece in answer.iter_text():
                if not text.count("output_text.delta") and "output_text.delta" in piece:
                    server.service.fail("rank 1 failed.")
                text += piece
        response = check_response_stream(response_events(text))
        assert response["status"] == "failed"
        assert response["error"] == {"code": "server_error", "message": "rank 1 failed."}
        assert response["output"][0]["status"] == "incomplete"
        assert ask(server, "hi").status_code == 503
        server.service._state = server.service.state.ready  # so that the fixture can drain it


def test_calls_of_a_turn_have_ids_of_their_own(server):
    ids = [item["call_id"] for _ in range(2) for item in whole(server, "twice", tools=[WEATHER])["output"]]
    assert len(set(ids)) == 4


def test_arguments_come_in_pieces(server):
    events = response_events(ask(server, "weather", tools=[WEATHER], stream=True).text)
    deltas = [one["delta"] for one in events if one["type"] == "response.function_call_arguments.delta"]
    assert len(deltas) > 2
    assert json.loads("".join(deltas)) == {"city": "Paris"}


def test_calls_of_functions_that_were_not_offered_are_calls_too(tmp_path):
    book = [{"harmony": CALL.format("made_up", "not json<|call|>")}]
    with serving(book, tmp_path) as server:
        assert said(streamed(server, "x", tools=[WEATHER])) == [("made_up", "not json")]

"""The client against a real HTTP server on this machine that says what a script tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.chat.remote import RemoteModel
from gptoss_dist.config import compose_run
from gptoss_dist.errors import ConfigError, ServerError

GENERATION = compose_run(["job=chat", "model=tiny", "generation.max_new_tokens=7", "generation.seed=3"]).generation


def event(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


class Script:
    """What the server says, and what it was asked."""

    def __init__(self, pieces: list[bytes], status: int = 200) -> None:
        self.pieces, self.status = pieces, status
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []


@contextmanager
def serving(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.keys.append(self.headers["Authorization"])
            self._send(200, [json.dumps({"data": [{"id": "served"}]}).encode()])

        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send(script.status, script.pieces)

        def _send(self, status: int, pieces: list[bytes]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(script: Script, talk: Conversation | None = None) -> tuple[list[Piece], Turn]:
    talk, turn = talk or Conversation(), Turn()
    talk.say("Hi.")
    with serving(script) as address:
        model = RemoteModel(address, None, GENERATION)
        assert model.name == f"served at {address}"
        try:
            return list(model.answer(talk, turn)), turn
        finally:
            model.close()


def test_pieces_come_as_the_server_sends_them():
    call = {"index": 0, "id": "call_9", "function": {"name": "clock", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": '{"a":1}'}}
    done = json.dumps({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": None}).encode()
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 12}}).encode()
    script = Script(
        [
            event(role="assistant"),
            event(reasoning="Hm"),
            event(reasoning_content="."),
            event(content="Gr")[:20],
            event(content="Gr")[20:],
            event(content="üße"),
            event(tool_calls=[call]),
            event(tool_calls=[more]),
            b": a comment\n\n",
            b"data: " + done + b"\n\n",
            b"data: " + usage + b"\n\n",
            b"data: [DONE]\n\n",
        ]
    )
    pieces, turn = ask(script, Conversation(system="Be brief."))
    assert pieces == [
        Piece("analysis", "Hm"),
        Piece("analysis", "."),
        Piece("final", "Gr"),
        Piece("final", "üße"),
        Piece("call", "", "clock", "call_9"),
        Piece("call", '{"a":1}', None, "call_9"),
    ]
    assert (turn.finish, turn.tokens) == ("tool_calls", 12)
    (asked,) = script.asked
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    assert (asked["model"], asked["max_completion_tokens"], asked["seed"]) == ("served", 7, 3)
    assert asked["reasoning_effort"] == "medium"
    assert asked["stream"] is True
    assert "tools" not in asked


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_a_sign_that_is_a_line_end_elsewhere_is_text_in_a_stream(sign: str):
    delta = {"choices": [{"index": 0, "delta": {"content": f"one{sign}two"}}]}
    piece = b"data: " + json.dumps(delta, ensure_ascii=False).encode() + b"\r\n\r\n"
    pieces, _ = ask(Script([piece, b"data: [DONE]\n\n"]))
    assert pieces == [Piece("final", f"one{sign}two")]


def test_an_answer_is_as_long_as_the_server_lets_it_be_unless_a_length_is_asked_for():
    script = Script([b"data: [DONE]\n\n"])
    with serving(script) as address:
        model = RemoteModel(address, None, compose_run(["job=chat", "model=tiny"]).generation)
        assert list(model.answer(Conversation(), Turn())) == []
        model.close()
    assert "max_completion_tokens" not in script.asked[0]


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    script = Script([b"data: [DONE]\n\n"])
    ask(script)
    assert script.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script([b'{"error": {"message": "too long"}}'], 400), "400: too long"),
        (Script([b"no words"], 500), "500: no words"),
        (Script([b'{"error": {"message": "no key"}}'], 401), "no key Set OPENAI_API_KEY."),
        (Script([b'data: {"error": {"message": "a rank died"}}\n\n']), "a rank died"),
        (Script([b"data: {oops\n\n"]), "not JSON: {oops"),
        (Script([b"data: \xff\n\n"]), "not UTF-8"),
        (Script([event(content="Half an")]), "the stream broke off"),
    ],
)
def test_what_a_server_refuses_is_said_in_its_words(script: Script, said: str):
    with pytest.raises(ServerError) as caught:
        ask(script)
    assert said in str(caught.value)


def test_no_server_and_no_address():
    with pytest.raises(ServerError, match="Is a server running there"):
        RemoteModel("http://127.0.0.1:9", None, GENERATION)
    with pytest.raises(ConfigError, match="give the server's address"):
        RemoteModel("localhost:8000", None, GENERATION)

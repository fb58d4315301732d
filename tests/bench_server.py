"""A small server that speaks as much of OpenAI's API as a measurement needs; the model's name says how it behaves.

steady     first token after FIRST_S, then one each GAP_S; usage at the end
shredded   the same without usage, every chunk cut into pieces of 3 bytes, in lines and letters
strict     refuses `ignore_eos`
chatty     has no /v1/completions
early      ends after half of the tokens
breaking   every third request is cut off after two tokens
busy       every third request is refused with 503
failing    every third stream reports an error
locked     wants a key
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIRST_S, GAP_S = 0.06, 0.01


@dataclass
class Seen:
    """What the server was asked, and when it wrote tokens, by `time.perf_counter`."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    written: dict[int, list[float]] = field(default_factory=dict)
    """By the seed of the request."""
    most_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: Seen

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": "steady"}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.seen.lock:
            self.seen.bodies.append(body)
            self.seen.keys.append(self.headers.get("Authorization"))
            self.seen.now += 1
            self.seen.most_at_once = max(self.seen.most_at_once, self.seen.now)
        try:
            self._complete(body)
        finally:
            with self.seen.lock:
                self.seen.now -= 1

    def _complete(self, body: dict[str, Any]) -> None:
        model, unlucky = body["model"], body["seed"] % 3 == 2
        if model == "locked":
            return self._answer(401, {"error": {"message": "no key"}})
        if model == "chatty" and self.path == "/v1/completions":
            return self._answer(404, {"detail": "Not Found"})
        if model == "strict" and "ignore_eos" in body:
            return self._answer(400, {"error": {"message": "unknown field ignore_eos"}})
        if model == "busy" and unlucky:
            return self._answer(503, {"error": {"message": "too many requests"}})
        return self._stream(body, model, unlucky)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _stream(self, body: dict[str, Any], model: str, unlucky: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path.endswith("chat/completions")
        wanted = body.get("max_tokens") or body["max_completion_tokens"]
        count = wanted // 2 if model == "early" else wanted
        times = self.seen.written.setdefault(body["seed"], [])
        if chat:
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}, model)
        for number in range(count):
            time.sleep(GAP_S if number else FIRST_S)
            if number == 2 and unlucky and model == "breaking":
                self.close_connection = True
                return
            if number == 2 and unlucky and model == "failing":
                self._event({"error": {"message": "out of memory"}}, model)
                break
            times.append(time.perf_counter())
            last = "length" if number == count - 1 else None
            part = {"delta": {"content": " é✓"}} if chat else {"text": " é✓"}
            self._event({"choices": [{**part, "finish_reason": last}]}, model)
        if model != "shredded":
            prompt = 77 if chat else len(body["prompt"])
            self._event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": count}}, model)
        self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, content: dict[str, Any], model: str) -> None:
        event = f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
        size = 3 if model == "shredded" else len(event)
        for at in range(0, len(event), size):
            self._write(event[at : at + size])

    def _write(self, part: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, Seen]]:
    """The server's address, and what it sees, as long as the block lasts."""
    seen = Seen()
    server = Server(("127.0.0.1", 0), type("SeeingHandler", (Handler,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""Clients that hold a connection without ever making a request of it, on a scripted server."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from live_server import MODEL

from gptoss_dist.server import connection, limited

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "count"}]}).encode()


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


@pytest.mark.parametrize("begun", [b"", b"POST", HEAD.encode()], ids=["nothing", "a word", "half a head"])
def test_a_head_that_never_comes_ends_the_connection(server, monkeypatch, begun: bytes):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with connect(server) as line:
        line.sendall(begun)
        assert line.recv(100) == b""


def test_half_a_second_head_ends_it_too_but_not_the_answer_before_it(server, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    slow = BODY.replace(b'"count"', b'"slow"').replace(b"}]}", b'}], "stream": true}')  # some four seconds
    with connect(server) as line:
        line.sendall(f"{HEAD}Content-Length: {len(slow)}\r\n\r\n".encode() + slow + b"GET /health")
        told = b""
        while piece := line.recv(65536):
            told += piece
    assert b"data: [DONE]" in told


def test_a_head_without_an_end_is_refused(server):
    with connect(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nX: ")
        answer = b""
        try:
            for _ in range(100):
                line.sendall(b"a" * 65536)
        except OSError:
            pass  # it does not read on
        else:
            answer = line.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_long_head_that_ends_is_fine(server):
    answer = httpx.get(f"{server.url}/health", headers={"X-Long": "a" * 30_000})
    assert answer.status_code == 200


def test_a_body_that_never_comes_is_told_so(server, monkeypatch):
    monkeypatch.setattr(limited, "BODY_S", 0.3)
    with connect(server) as line:
        line.sendall(f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY[:10])
        told = b""
        while piece := line.recv(65536):
            told += piece
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in told.lower()
    error = json.loads(told.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "body_too_slow"
    assert "10 bytes of it did" in error["message"]


def test_a_body_in_pieces_is_fine(server):
    def pieces():
        for byte in BODY:
            yield bytes([byte])

    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=pieces(), headers=headers, timeout=30)
    assert answer.status_code == 200


def test_a_web_socket_is_not_offered(server):
    with connect(server) as line:
        line.sendall(b"GET /v1/models HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert line.recv(1000).startswith(b"HTTP/1.1 200 ")

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from gptoss_dist.runtime.line import Line


@pytest.fixture
def pair() -> Iterator[tuple[Line, socket.socket]]:
    with socket.create_server(("localhost", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    line = Line(near)
    yield line, far
    line.close()
    far.close()


def test_objects_arrive_whole_however_the_bytes_are_cut(pair):
    line, far = pair
    far.sendall(b'{"rank": 1}\n{"cau')
    assert line.receive() == [{"rank": 1}]
    far.sendall(b'se": "x"}\n')
    assert line.receive() == [{"cause": "x"}]


def test_sending(pair):
    line, far = pair
    assert line.send({"rank": 1})
    assert far.recv(100) == b'{"rank": 1}\n'


def test_the_other_end_gone(pair):
    line, far = pair
    far.close()
    assert line.receive() is None


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n", b"1\n", b"[]\n", b'{"rank": 1}\nnull\n', b"[" * 20_000 + b"\n"]
)
def test_what_is_no_object_ends_the_connection(pair, said: bytes):
    line, far = pair
    far.sendall(said)
    assert line.receive() is None


def send_long(far: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is not read to its end
        far.sendall(b'{"cause": "' + b"1" * (2 << 20) + b'"}\n')


def test_what_is_too_long_ends_the_connection(pair):
    line, far = pair
    writer = threading.Thread(target=send_long, args=(far,))
    writer.start()
    while (found := line.receive()) == []:
        pass
    line.close()
    writer.join(10)
    assert found is None


def test_closing_wakes_the_thread_that_waits(pair):
    line, _ = pair
    received = []
    thread = threading.Thread(target=lambda: received.append(line.receive()))
    thread.start()
    line.close()
    thread.join(10)
    assert received == [None]
    assert not line.send({})


def test_the_kernel_watches_a_silent_connection(pair):
    line, _ = pair
    with socket.fromfd(line.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        interval = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        count = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
    assert idle + interval * count < 20

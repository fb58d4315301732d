"""Who is let in, and who is not; real connections on this machine, threads stand for ranks."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from opened_channels import all_of, opened

from gptoss_dist.errors import RankError
from gptoss_dist.runtime import open_channels as module
from gptoss_dist.runtime.open_channels import open_channels


@pytest.fixture(autouse=True)
def master(monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_the_ranks_that_are_named_are_connected_and_know_who_speaks():
    found = opened(5, [2, 4])
    first, second, fourth = found[0], found[2], found[4]
    assert found[1] is found[3] is None
    assert first is not None
    assert second is not None
    assert fourth is not None
    fourth.send(0, "I am 4")
    second.send(0, "I am 2")
    assert sorted(all_of(first, 2)) == [(2, "I am 2"), (4, "I am 4")]
    first.send(4, "you are 4")
    assert all_of(fourth, 1) == [(0, "you are 4")]
    assert second.receive() == []
    for one in (first, second, fourth):
        one.close()


def told(stranger: socket.socket) -> bytes:
    """All that it was, until it was sent away."""
    with stranger:
        try:
            return stranger.recv(100)
        except ConnectionError:
            return b""


def test_strangers_are_sent_away_and_keep_nobody_waiting():
    strangers: list[socket.socket] = []

    def knock(port: int) -> None:
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n" + bytes(100), bytes(36), b"\1"):
            strangers.append(socket.create_connection(("127.0.0.1", port), timeout=30))
            strangers[-1].sendall(said)

    first, other = opened(2, [1], knock)
    assert first is not None
    assert other is not None
    assert [told(one) for one in strangers] == [b""] * 4
    other.send(0, "a friend")
    assert all_of(first, 1) == [(1, "a friend")]
    first.close()
    other.close()


def test_a_program_that_is_not_rank_0_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as impostor, ThreadPoolExecutor(1) as pool:
        door = module._Door(impostor.getsockname()[1])
        found = pool.submit(open_channels, 1, [1], lambda _: door, 20.0)
        connection, _ = impostor.accept()
        with connection:
            connection.sendall(bytes(32))
            with pytest.raises(RankError, match=r"^rank 1 found another program on port \d+ of 127.0.0.1"):
                found.result(timeout=30)


def test_who_does_not_come_is_named():
    with pytest.raises(RankError, match=r"^rank 1, 2 did not connect with rank 0 within 0 s"):
        open_channels(0, [1, 2], lambda door: door, 0.2)


def test_who_finds_nobody_says_where_it_looked():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RankError, match=r"^rank 3 could not reach rank 0 at 127.0.0.1 within 5 s \("):
        open_channels(3, [3], lambda _: module._Door(port), 5.0)


@pytest.mark.parametrize(("address", "only_at"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")])
def test_on_one_machine_nobody_else_can_knock(monkeypatch, address: str, only_at: str):
    monkeypatch.setenv("MASTER_ADDR", address)
    asked = []

    def listen(where: str | None, backlog: int) -> socket.socket:
        asked.append(where)
        return socket.create_server(("127.0.0.1", 0), backlog=backlog)

    monkeypatch.setattr(module, "listen", listen)
    first, other = opened(2, [1])
    assert asked == [only_at]
    assert first is not None
    assert other is not None
    first.close()
    other.close()

"""Real connections on this machine; threads stand for ranks where several have to act at once."""

from __future__ import annotations

import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gptoss_dist.errors import RankError
from gptoss_dist.runtime import channels as module
from gptoss_dist.runtime.channels import Channels, open_channels

LONG = 10 << 20
"""Bytes that no kernel takes at once."""


@pytest.fixture(autouse=True)
def master(monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


class Broadcasts:
    """Gives to all what rank 0 gives."""

    def __init__(self, others: int) -> None:
        self._left = [queue.Queue[Any]() for _ in range(others)]

    def of(self, rank: int) -> Callable[[Any], Any]:
        def broadcast(value: Any) -> Any:
            if rank > 0:
                return self._left[rank - 1].get(timeout=30)
            for one in self._left:
                one.put(pickle.loads(pickle.dumps(value)))
            return value

        return broadcast


def opened(world: int, peers: list[int], meddle: Callable[[int], None] = lambda _: None) -> list[Channels | None]:
    """The channels of each rank; `meddle(port)` before the others learn where rank 0 listens."""
    broadcasts = Broadcasts(world - 1)

    def first(door: Any) -> Any:
        meddle(door.port)
        return broadcasts.of(0)(door)

    with ThreadPoolExecutor(world) as pool:
        rest = [pool.submit(open_channels, rank, peers, broadcasts.of(rank), 20.0) for rank in range(1, world)]
        return [open_channels(0, peers, first, 20.0), *(one.result(timeout=60) for one in rest)]


@pytest.fixture
def pair() -> Iterator[tuple[Channels, Channels]]:
    first, other = opened(2, [1])
    assert first is not None
    assert other is not None
    yield first, other
    first.close()
    other.close()


def all_of(channels: Channels, count: int) -> list[tuple[int, Any]]:
    """The next `count` messages, within a time."""
    found, until = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, found
        found += channels.receive(1.0)
    return found


def test_messages_arrive_in_order_both_ways(pair):
    first, other = pair
    for number in range(500):
        first.send(1, ("down", number))
        other.send(0, ("up", number, bytes(number)))
    assert all_of(other, 500) == [(0, ("down", number)) for number in range(500)]
    assert all_of(first, 500) == [(1, ("up", number, bytes(number))) for number in range(500)]
    assert first.receive() == other.receive() == []


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


def test_two_that_write_much_at_once_do_not_stop_each_other(pair):
    first, other = pair
    content = bytes(range(256)) * (LONG // 256)
    for number in range(3):  # nobody reads meanwhile
        first.send(1, (number, content))
        other.send(0, (number, content))
    found: dict[Channels, list[tuple[int, Any]]] = {first: [], other: []}
    until = time.monotonic() + 60
    while min(map(len, found.values())) < 3:
        assert time.monotonic() < until
        for one, messages in found.items():
            messages += one.receive()
    assert found[first] == [(1, (number, content)) for number in range(3)]
    assert found[other] == [(0, (number, content)) for number in range(3)]
    first.send(1, "after it")
    assert all_of(other, 1) == [(0, "after it")]


def test_what_was_flushed_arrives_without_another_call(pair):
    first, other = pair
    content = bytes(LONG)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(all_of, first, 2)
        other.send(0, content)
        other.send(0, "the last")
        other.flush()
        assert found.result(timeout=60) == [(1, content), (1, "the last")]


def test_waiting_ends_with_a_message_and_looking_waits_for_none(pair):
    first, other = pair
    assert first.receive() == []
    waiting = threading.Event()

    def wait() -> list[tuple[int, Any]]:
        waiting.set()
        return first.receive(60.0)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(wait)
        waiting.wait()
        other.send(0, "here")
        assert found.result(timeout=30) == [(1, "here")]


def test_who_waits_takes_no_processor_time(pair):
    used = time.thread_time()
    assert pair[0].receive(1.5) == []
    assert time.thread_time() - used < 0.1


def test_an_end_is_told_after_the_last_message_and_after_a_better_cause_could_be(pair):
    first, other = pair
    other.send(0, "my last")
    other.close()
    begun = time.monotonic()
    assert all_of(first, 1) == [(1, "my last")]
    first.send(1, "nobody hears this")
    with pytest.raises(RankError, match=r"^rank 1 has ended, and rank 0 works with it: .* Start all ranks again$"):
        first.receive(30.0)
    assert module._BETTER_CAUSE_SECONDS <= time.monotonic() - begun < 10
    with pytest.raises(RankError, match="rank 1 has ended"):
        first.receive()


def test_an_end_is_told_however_much_the_others_say():
    first, second, third = opened(3, [1, 2])
    assert first is not None
    assert second is not None
    assert third is not None
    second.close()

    def listen() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            third.send(0, "busy")
            assert first.receive(5.0)

    with pytest.raises(RankError, match="rank 1 has ended"):
        listen()
    first.close()
    third.close()


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

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from gptoss_dist.runtime.cause import Cause
from gptoss_dist.runtime.hub import Hub
from gptoss_dist.runtime.line import Line

FAILED = Cause("failed", 1, "torn", 1)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(3, only_at="localhost", join_seconds=30)
    yield hub
    assert hub.wait(10)


@pytest.fixture
def join(hub: Hub) -> Iterator[Callable[[int], Line]]:
    lines = []

    def joined(rank: int, token: str | None = None) -> Line:
        line = Line(socket.create_connection(("localhost", hub.port)))
        lines.append(line)
        known = len(hub._joined)
        line.send({"rank": rank, "token": hub.token if token is None else token})
        while token is None and rank not in hub._seen and len(hub._joined) == known:
            time.sleep(0.01)
        return line

    yield joined
    for line in lines:
        line.close()


def told(cause: Cause, speaker: int) -> list[dict[str, object]]:
    return [{"cause": cause.to_dict(), "speaker": speaker}]


def test_the_first_cause_is_told_to_all(join):
    lines = [join(rank) for rank in range(3)]
    lines[1].send({"cause": FAILED.to_dict()})
    assert [line.receive() for line in lines] == [told(FAILED, 1)] * 3
    lines[2].send({"cause": Cause("failed", 2, "late", 1).to_dict()})
    lines[2].send({"left": True})


def test_a_line_that_ends_is_a_rank_that_vanished(join):
    lines = [join(rank) for rank in range(3)]
    lines[0].close()
    assert [line.receive() for line in lines[1:]] == [told(Cause.vanished(0), 1)] * 2


def test_a_rank_that_left_has_not_vanished(hub: Hub, join):
    lines = [join(rank) for rank in range(3)]
    for line in lines:
        line.send({"left": True})
        line.close()
    assert hub.wait(10)
    assert hub.cause is None


def test_who_joins_after_the_end_is_told(join):
    lines = [join(0), join(1)]
    lines[1].send({"cause": FAILED.to_dict()})
    assert lines[0].receive() == told(FAILED, 1)
    assert join(2).receive() == told(FAILED, 1)


def test_who_joins_first_says_what_nobody_was_there_to_say(join):
    join(0).close()
    assert join(2).receive() == told(Cause.vanished(0), 2)
    assert join(1).receive() == told(Cause.vanished(0), 2)


def test_strangers_are_shown_the_door_and_change_nothing(hub: Hub, join):
    stranger = join(1, token="guessed")
    assert stranger.receive() is None
    scanner = socket.create_connection(("localhost", hub.port))
    scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert scanner.recv(100) == b""
    scanner.close()
    lines = [join(rank) for rank in range(3)]
    assert join(2).receive() is None  # there is a rank 2 already
    lines[0].send({"cause": FAILED.to_dict()})
    assert lines[2].receive() == told(FAILED, 0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(("only_at", "reached_at"), [("::1", "::1"), ("127.0.0.1", "127.0.0.1"), (None, "::1")])
def test_it_listens_where_it_is_told(only_at, reached_at):
    hub = Hub(1, only_at=only_at, join_seconds=30)
    line = Line(socket.create_connection((reached_at, hub.port)))
    line.send({"rank": 0, "token": hub.token})
    line.send({"left": True})
    assert hub.wait(10)
    line.close()


def test_a_rank_that_does_not_join_is_named():
    hub = Hub(2, only_at="localhost", join_seconds=0.2)
    line = Line(socket.create_connection(("localhost", hub.port)))
    line.send({"rank": 0, "token": hub.token})
    (message,) = line.receive() or []
    assert message["speaker"] == 0
    assert message["cause"]["rank"] == 1
    assert message["cause"]["message"].startswith("it did not join within 0 s")
    line.close()
    assert hub.wait(10)

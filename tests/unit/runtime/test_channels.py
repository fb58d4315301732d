"""Real connections on this machine; threads stand for ranks where several have to act at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opened_channels import all_of, opened

from gptoss_dist.errors import RankError
from gptoss_dist.runtime import channels as module
from gptoss_dist.runtime.channels import Channels

LONG = 10 << 20
"""Bytes that no kernel takes at once."""


@pytest.fixture(autouse=True)
def master(monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


@pytest.fixture
def pair() -> Iterator[tuple[Channels, Channels]]:
    first, other = opened(2, [1])
    assert first is not None
    assert other is not None
    yield first, other
    first.close()
    other.close()


def test_messages_arrive_in_order_both_ways(pair):
    first, other = pair
    for number in range(500):
        first.send(1, ("down", number))
        other.send(0, ("up", number, bytes(number)))
    assert all_of(other, 500) == [(0, ("down", number)) for number in range(500)]
    assert all_of(first, 500) == [(1, ("up", number, bytes(number))) for number in range(500)]
    assert first.receive() == other.receive() == []


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

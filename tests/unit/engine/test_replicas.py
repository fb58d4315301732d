"""Threads stand for ranks, which exchange through a list; tests/multi/test_engine_follow.py runs real ones."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss_dist.engine.replicas import ReplicatedEngine
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.stats import ReplicaStats
from gptoss_dist.engine.work import Work
from gptoss_dist.errors import ConfigError, LogitsError, RankError
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks, place

TOKENS = 10
"""Of every answer."""


@pytest.fixture(autouse=True)
def master(monkeypatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")


class Meeting:
    """Where some ranks exchange values."""

    def __init__(self, size: int) -> None:
        self.barrier, self.values = threading.Barrier(size), [None] * size


class ThreadGroup(RankGroup):
    """One rank's view of what all exchange; `meetings` by their first rank and size, the same for all."""

    def __init__(self, rank: int, size: int, meetings: dict[tuple[int, int], Meeting], first: int = 0) -> None:
        super().__init__(rank, rank, size, torch.device("cpu"), first=first)
        self.meetings = meetings
        self._meeting = meetings[first, size]

    def part(self, size: int) -> RankGroup:
        first = self.rank // size * size
        return ThreadGroup(self.rank - first, size, self.meetings, first)

    def all_gather_object(self, value: Any) -> list[Any]:
        self._meeting.values[self.rank] = value
        self._meeting.barrier.wait(30)
        found = list(self._meeting.values)
        self._meeting.barrier.wait(30)
        return found

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        return self.all_gather_object(value)[src]


class Counting(ReplicatedEngine):
    """Says 0, 1, 2, … to every request; `before_step` is called before each step with the engine."""

    context = 100

    def __init__(self, group: RankGroup, ranks: Ranks, before_step: Callable[[Counting], None]) -> None:
        loaded: Any = SimpleNamespace(checkpoint=SimpleNamespace(shape=SimpleNamespace(vocab=100, max_position=100)))
        super().__init__(loaded, group, ranks, agree_every=2)
        self.rank, self.apart = group.rank, False
        self._before_step = before_step
        self._said: dict[str, int] = {}
        self.generated = 0
        self.is_ready = True
        """Whether the device has done the step."""

    def at_once(self, request: Request) -> int:
        return 100

    def _check_fits(self, request: Request) -> None:
        pass

    def _admit(self, request: Request) -> None:
        self._said[request.id] = 0

    def _drop(self, request_id: str) -> Event | None:
        return None if self._said.pop(request_id, None) is None else Event(request_id, (), Finish.cancelled)

    def _compute(self) -> Work:
        self._before_step(self)
        yield lambda: self.is_ready
        events = []
        for name, said in list(self._said.items()):
            self._said[name] = said + 1
            token = 99 - said if self.apart else said
            events.append(Event(name, (token,), Finish.length if said == TOKENS - 1 else None))
            self.generated += 1
            if said == TOKENS - 1:
                del self._said[name]
        return events

    def _describe(self) -> ReplicaStats:
        return ReplicaStats(running=len(self._said), generated=self.generated)


@dataclass
class World:
    """dp × tp ranks; `results` of their acts by rank, once they ran."""

    dp: int
    tp: int
    before_step: Callable[[Counting], None] = lambda _: None
    errors: list[str | None] = field(default_factory=list)

    def run(self, serve: Callable[[Counting], None]) -> World:
        """Rank 0 does `serve`, the others follow; what each raised, if it is of the kinds that all are told."""
        world = self.dp * self.tp
        meetings = {(0, world): Meeting(world)}
        meetings |= {(first, self.tp): Meeting(self.tp) for first in range(0, world, self.tp) if self.dp > 1}

        def act(rank: int) -> str | None:
            group = ThreadGroup(rank, world, meetings)
            engine = Counting(group, Ranks(self.dp, self.tp, *place(rank, self.tp), mesh=None), self.before_step)
            told = None
            try:
                serve(engine) if rank == 0 else engine.follow()
            except (RankError, LogitsError) as error:
                told = str(error)
            except BaseException:
                ends.abort()
                engine.close()  # the others are not left waiting
                raise
            with contextlib.suppress(threading.BrokenBarrierError):
                ends.wait(60)
            engine.close()
            return told

        ends = threading.Barrier(world)  # nobody goes while another one is at work
        with ThreadPoolExecutor(world) as pool:
            self.errors = [one.result(timeout=120) for one in [pool.submit(act, rank) for rank in range(world)]]
        return self


def request(name: str, prompt: int = 1) -> Request:
    return Request(name, (7,) * prompt, Sampling(TOKENS))


def collected(events: list[Event]) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    for event in events:
        outputs.setdefault(event.request_id, []).extend(event.tokens)
    return outputs


def until_finished(engine: Counting, name: str) -> dict[str, list[int]]:
    """Step until a request has ended; what all said on the way."""
    found: list[Event] = []
    deadline = time.monotonic() + 60
    while name not in {one.request_id for one in found if one.finish}:
        assert time.monotonic() < deadline, found
        found += engine.step()
    return collected(found)


def four(engine: Counting) -> None:
    """Four requests, which the replicas share."""
    found = collected(list(engine.stream([request(str(number)) for number in range(4)])))
    assert found == {str(number): list(range(TOKENS)) for number in range(4)}
    assert sum(one.generated for one in engine.stats().replicas) == 4 * TOKENS
    assert min(one.generated for one in engine.stats().replicas) > 0


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_all_events_come_to_rank_0(dp, tp):
    assert World(dp, tp).run(four).errors == [None] * (dp * tp)


@pytest.mark.parametrize(("dp", "tp", "apart"), [(1, 2, 1), (2, 2, 1), (2, 2, 3)])
def test_a_rank_that_parts_from_its_replica_is_named_on_all(dp, tp, apart):
    def part(engine: Counting) -> None:
        engine.apart = engine.rank == apart and engine._steps > 3

    def serve(engine: Counting) -> None:
        list(engine.stream([request(str(number)) for number in range(4)]))

    for error in World(dp, tp, part).run(serve).errors:
        assert error is not None
        assert error.startswith(f"ranks generate different tokens: rank {apart} has ")
        assert f"; rank {apart - 1} has " in error


def test_replicas_are_not_compared_with_each_other():
    def part(engine: Counting) -> None:
        engine.apart = engine.rank == 1

    def serve(engine: Counting) -> None:
        found = collected(list(engine.stream([request("a"), request("b")])))
        assert found == {"a": list(range(TOKENS)), "b": list(range(99, 99 - TOKENS, -1))}

    assert World(2, 1, part).run(serve).errors == [None, None]


@pytest.mark.parametrize("broken", [0, 2, 3])
def test_what_one_replica_fails_with_is_raised_on_every_rank(broken):
    def fail(engine: Counting) -> None:
        if engine._ranks.dp_rank == broken // 2 and engine._steps == 4:
            raise LogitsError("step 4: the logits are NaN.")

    def serve(engine: Counting) -> None:
        list(engine.stream([request(str(number)) for number in range(4)]))

    assert World(2, 2, fail).run(serve).errors == ["step 4: the logits are NaN."] * 4


def test_a_replica_that_is_held_up_holds_up_no_other():
    held, go_on = threading.Event(), threading.Event()

    def hold(engine: Counting) -> None:
        if engine.rank == 1 and engine._steps == 3:
            held.set()
            assert go_on.wait(60)

    def serve(engine: Counting) -> None:
        engine.submit(request("first"))
        engine.submit(request("held", 50))
        until_finished(engine, "first")
        held.wait(60)
        for number in range(20):
            engine.submit(request(f"quick {number}"))
            assert until_finished(engine, f"quick {number}")[f"quick {number}"] == list(range(TOKENS))
        assert engine.has_work
        assert engine.step() == []
        go_on.set()
        rest = collected(list(engine.stream([])))
        assert rest["held"][-1] == TOKENS - 1
        assert engine.stats().replicas[1].generated == TOKENS

    assert World(2, 1, hold).run(serve).errors == [None, None]


def test_what_other_replicas_say_does_not_wait_for_the_device_of_the_first():
    def serve(engine: Counting) -> None:
        engine.is_ready = False
        engine.submit(request("first"))
        engine.submit(request("other"))
        for name in ("other", "to the other"):
            assert until_finished(engine, name) == {name: list(range(TOKENS))}
            engine.submit(request("to the other"))
        engine.cancel("first")
        engine.is_ready = True
        finishes = {one.request_id: one.finish for one in engine.stream([]) if one.finish}
        assert finishes == {"first": Finish.cancelled, "to the other": Finish.length}

    assert World(2, 1).run(serve).errors == [None, None]


def test_a_cancellation_reaches_the_replica_and_not_a_later_request_of_that_id():
    cancelled = threading.Event()

    def hold(engine: Counting) -> None:
        if engine.rank == 1 and engine._steps == 3:
            assert cancelled.wait(60)

    def serve(engine: Counting) -> None:
        engine.submit(request("first"))
        engine.submit(request("other"))
        engine.step()
        engine.cancel("other")
        engine.cancel("nobody")
        with pytest.raises(ConfigError, match="request other: a request of this id is under way"):
            engine.submit(request("other"))
        events = engine.step()
        cancelled.set()
        finishes = {one.request_id: one.finish for one in [*events, *engine.drain()] if one.finish}
        assert finishes == {"first": Finish.length, "other": Finish.cancelled}
        engine.cancel("other")
        assert collected(list(engine.stream([request("other")]))) == {"other": list(range(TOKENS))}

    assert World(2, 1, hold).run(serve).errors == [None, None]


def test_the_step_that_releases_is_one_of_all_replicas():
    def serve(engine: Counting) -> None:
        engine.submit(request("first"))
        engine.submit(request("other"))
        engine.release()
        assert collected(engine.step()) == {"first": [0], "other": [0]}
        assert engine.has_work

    assert World(2, 1).run(serve).errors == [None, None]


def test_one_replica_opens_no_socket(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "create_server", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert World(1, 2).run(four).errors == [None, None]

"""Threads stand for ranks, which exchange through a list; tests/multi/test_engine_follow.py runs real ones."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptoss_dist.engine.replicas import ReplicatedEngine
from gptoss_dist.engine.request import Event, Finish, Request, Sampling
from gptoss_dist.engine.stats import ReplicaStats
from gptoss_dist.errors import RankError
from gptoss_dist.runtime.dist import RankGroup
from gptoss_dist.runtime.mesh import Ranks, place


class ThreadGroup(RankGroup):
    """One rank's view of what all exchange."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, values: list[Any]) -> None:
        super().__init__(rank, rank, world_size, torch.device("cpu"))
        self._barrier, self._values = barrier, values

    def all_gather_object(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(30)
        found = list(self._values)
        self._barrier.wait(30)
        return found

    def broadcast_object(self, value: Any, src: int = 0) -> Any:
        return self.all_gather_object(value)[src]


class Counting(ReplicatedEngine):
    """Says 0, 1, 2, … to every request; from step 4 on, if `apart`, other numbers."""

    context = 100

    def __init__(self, group: RankGroup, ranks: Ranks, apart: bool) -> None:
        loaded: Any = SimpleNamespace(checkpoint=SimpleNamespace(shape=SimpleNamespace(vocab=100, max_position=100)))
        super().__init__(loaded, group, ranks, agree_every=2)
        self._apart = apart
        self._said: dict[str, int] = {}

    def _check_fits(self, request: Request) -> None:
        pass

    def _admit(self, request: Request) -> None:
        self._said[request.id] = 0

    def _drop(self, request_id: str) -> Event | None:
        raise NotImplementedError

    def _compute(self) -> list[Event]:
        events = []
        for name, said in list(self._said.items()):
            self._said[name] = said + 1
            token = 99 - said if self._apart and self._steps > 3 else said
            events.append(Event(name, (token,), Finish.length if said == 9 else None))
            if said == 9:
                del self._said[name]
        return events

    def _describe(self) -> ReplicaStats:
        return ReplicaStats(running=len(self._said))


def errors_of(dp: int, tp: int, apart: int | None) -> list[str | None]:
    """What each rank raises while it answers, of which `apart` generates other tokens."""
    world = dp * tp
    barrier, values = threading.Barrier(world), [None] * world

    def act(rank: int) -> str | None:
        group, ranks = ThreadGroup(rank, world, barrier, values), Ranks(dp, tp, *place(rank, tp), mesh=None)
        engine = Counting(group, ranks, rank == apart)
        try:
            for _ in engine.stream([Request(str(number), (number,), Sampling(10)) for number in range(4)]):
                pass
        except RankError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(world) as pool:
        return [one.result(timeout=120) for one in [pool.submit(act, rank) for rank in range(world)]]


@pytest.mark.parametrize(("dp", "tp", "apart"), [(1, 2, 1), (2, 2, 1), (2, 2, 3)])
def test_a_rank_that_parts_from_its_replica_is_named(dp, tp, apart):
    for error in errors_of(dp, tp, apart):
        assert error is not None
        assert error.startswith(f"ranks generate different tokens: rank {apart} has ")
        assert f"; rank {apart - 1} has " in error


@pytest.mark.parametrize(("dp", "tp", "apart"), [(2, 1, 1), (1, 2, None), (2, 2, None)])
def test_replicas_may_differ_and_ranks_that_agree_are_left_alone(dp, tp, apart):
    assert errors_of(dp, tp, apart) == [None] * (dp * tp)

"""Channels between ranks of one process, as `open_channels` makes them: a thread stands for each rank meanwhile."""

from __future__ import annotations

import pickle
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gptoss_dist.runtime.channels import Channels
from gptoss_dist.runtime.open_channels import open_channels


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


def all_of(channels: Channels, count: int) -> list[tuple[int, Any]]:
    """The next `count` messages, within a time."""
    found, until = [], time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, found
        found += channels.receive(1.0)
    return found

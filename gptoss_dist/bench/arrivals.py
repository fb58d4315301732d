"""When requests are sent: a new one as one ends, at random times of a given rate, or as many as fit a time.

Times are seconds since the load began; the clock itself is the driver's.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod

from gptoss_dist.bench.load import Row


class Arrivals(ABC):
    """Gives out requests by number, from 0."""

    @abstractmethod
    def take(self, now: float, active: int) -> list[tuple[int, float]]:
        """The requests to send now, while `active` are under way: number, and the time at which each was due."""

    @abstractmethod
    def wait(self, now: float, active: int) -> float:
        """Seconds until the next request is due if the `active` ones stay under way; infinite if one must end first."""

    @property
    @abstractmethod
    def left(self) -> bool:
        """Whether any request is still to be sent."""


class ClosedLoop(Arrivals):
    """`streams` at once: whenever one ends the next is due, until all `requests` were sent."""

    def __init__(self, requests: int, streams: int) -> None:
        """Nothing is sent yet."""
        self._requests, self._streams, self._sent = requests, streams, 0

    def take(self, now: float, active: int) -> list[tuple[int, float]]:
        """See `Arrivals.take`."""
        count = max(0, min(self._streams - active, self._requests - self._sent))
        self._sent += count
        return [(number, now) for number in range(self._sent - count, self._sent)]

    def wait(self, now: float, active: int) -> float:  # noqa: ARG002
        """See `Arrivals.wait`."""
        return 0.0 if self.left and active < self._streams else math.inf

    @property
    def left(self) -> bool:
        """See `Arrivals.left`."""
        return self._sent < self._requests


class OpenLoop(Arrivals):
    """A Poisson process of `rate` requests a second, the same for the same seed, whoever is still under way."""

    def __init__(self, requests: int, rate: float, seed: int) -> None:
        """Draw all times; the first request is due at 0."""
        generator = random.Random(f"arrivals {seed}")
        self._times = [0.0]
        while len(self._times) < requests:
            self._times.append(self._times[-1] + generator.expovariate(rate))
        self._sent = 0

    def take(self, now: float, active: int) -> list[tuple[int, float]]:  # noqa: ARG002
        """See `Arrivals.take`: a request that waited for the driver counts from when it was due."""
        due = []
        while self.left and self._times[self._sent] <= now:
            due.append((self._sent, self._times[self._sent]))
            self._sent += 1
        return due

    def wait(self, now: float, active: int) -> float:  # noqa: ARG002
        """See `Arrivals.wait`."""
        return max(0.0, self._times[self._sent] - now) if self.left else math.inf

    @property
    def left(self) -> bool:
        """See `Arrivals.left`."""
        return self._sent < len(self._times)


class TimedLoop(Arrivals):
    """`streams` at once for `seconds` seconds."""

    def __init__(self, streams: int, seconds: float) -> None:
        """Nothing is sent yet."""
        self._streams, self._seconds, self._sent, self._now = streams, seconds, 0, 0.0

    def take(self, now: float, active: int) -> list[tuple[int, float]]:
        """See `Arrivals.take`."""
        self._now = now
        count = max(0, self._streams - active) if self.left else 0
        self._sent += count
        return [(number, now) for number in range(self._sent - count, self._sent)]

    def wait(self, now: float, active: int) -> float:
        """See `Arrivals.wait`."""
        return 0.0 if now < self._seconds and active < self._streams else math.inf

    @property
    def left(self) -> bool:
        """See `Arrivals.left`."""
        return self._now < self._seconds


def arrivals_of(row: Row, seed: int) -> Arrivals:
    """When a row's requests are due."""
    if row.rate is not None:
        return OpenLoop(row.requests, row.rate, seed)
    return ClosedLoop(row.requests, row.streams)

"""What happened to each request, by one clock: seconds since the load began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gptoss_dist.engine.request import Finish


@dataclass
class Record:
    """One request: when it was due, when its tokens came, and how it ended."""

    prompt_tokens: int
    wanted_tokens: int
    due: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    """(time, new tokens), in order."""
    reported_tokens: int | None = None
    """Output tokens by the server's own count, where it gave one."""
    finished: bool = False
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """Tokens of the output so far."""
        return sum(count for _, count in self.arrivals) if self.reported_tokens is None else self.reported_tokens

    @property
    def time_to_first(self) -> float | None:
        """Seconds from due to the first token."""
        return self.arrivals[0][0] - self.due if self.arrivals else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second between the first and the last; None with fewer than two arrivals."""
        if len(self.arrivals) < 2 or self.arrivals[-1][0] <= self.arrivals[0][0]:
            return None
        return (self.output_tokens - self.arrivals[0][1]) / (self.arrivals[-1][0] - self.arrivals[0][0])

    @property
    def gaps(self) -> list[float]:
        """Seconds before each token after the first; tokens that arrive together share the gap before them evenly."""
        found: list[float] = []
        for (before, _), (time, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            found += [(time - before) / count] * count
        return found


class Loads(NamedTuple):
    """The records of a row, load by load, each in the order in which its requests were due."""

    measured: Sequence[Record]
    first_tokens: Sequence[Record] = ()
    """Those of which only the first token counts (`Row.first_tokens`)."""
    warm_up: Sequence[Record] = ()
    """Of these nothing counts but that one failed."""


class Listener(Protocol):
    """Whoever wants to know what happens to requests; times are seconds since the load began."""

    def sent(self, number: int, due: float, prompt_tokens: int, wanted_tokens: int) -> None:
        """A request was sent."""

    def tokens(self, number: int, time: float, count: int) -> None:
        """New tokens of a request arrived."""

    def ended(self, number: int, finish: Finish) -> None:
        """A request ended."""


class Records:
    """Keeps a record of every request, by its number."""

    def __init__(self) -> None:
        """Nothing was sent."""
        self.by_number: dict[int, Record] = {}

    def sent(self, number: int, due: float, prompt_tokens: int, wanted_tokens: int) -> None:
        """See `Listener.sent`."""
        self.by_number[number] = Record(prompt_tokens, wanted_tokens, due)

    def tokens(self, number: int, time: float, count: int) -> None:
        """See `Listener.tokens`."""
        self.by_number[number].arrivals.append((time, count))

    def ended(self, number: int, finish: Finish) -> None:
        """See `Listener.ended`."""
        record = self.by_number[number]
        record.finished = finish in (Finish.stop, Finish.length)
        if finish is Finish.blocked:
            record.error = "the engine ended it: blocked, no token was allowed"

"""The answers under way to one HTTP call, each with its reader; common to all APIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gptoss_dist.engine.request import Event, Request
from gptoss_dist.server.event_reader import EventReader
from gptoss_dist.server.request_stream import RequestStream

R = TypeVar("R", bound=EventReader[Any])


@dataclass
class Choice(Generic[R]):
    """One answer; its index is the client's."""

    index: int
    request: Request
    reader: R


class Choices(Generic[R]):
    """All answers of a call, over the stream of their events."""

    def __init__(self, choices: Sequence[Choice[R]], stream: RequestStream) -> None:
        """The requests of `choices` are those of `stream`."""
        self.all = tuple(choices)
        self.stream = stream
        self.cached = 0
        """Tokens of the prompt that were found in the cache, once an answer has begun."""
        self._by_id = {one.request.id: one for one in choices}

    def of(self, event: Event) -> Choice[R]:
        """The choice that an event belongs to."""
        self.cached = max(self.cached, event.cached)
        return self._by_id[event.request_id]

    def settle(self, choice: Choice[R]) -> bool:
        """Whether a choice has ended; one that needs no more tokens is then cancelled."""
        if choice.reader.finish_reason is None:
            return False
        self.stream.cancel(choice.request.id)
        return True

"""The events of a background stream, kept for those who take it up; the oldest ones may have been let go."""

from __future__ import annotations

from collections.abc import Callable

_SHARE = 8
"""One of so many events goes at a time, so that a log at its limit is not moved with every event."""


class EventLog:
    """Events by number, from 0: those from `begin` to `end` are here."""

    def __init__(self, on_change: Callable[[int], None]) -> None:
        """Empty; `on_change` is told by how many bytes it has grown, or shrunk."""
        self._events: list[bytes] = []
        self._on_change = on_change
        self.begin = 0
        self.bytes = 0

    @property
    def end(self) -> int:
        """The number of the next event."""
        return self.begin + len(self._events)

    def append(self, event: bytes) -> None:
        """Add an event."""
        self._events.append(event)
        self._change(len(event))

    def take(self, number: int, most: int) -> list[bytes]:
        """At most `most` events from `number` on, which must not be before `begin`."""
        assert number >= self.begin, "these events are gone"
        return self._events[number - self.begin : number - self.begin + most]

    def shorten(self) -> bool:
        """Let the oldest events go; whether there were any."""
        gone = self._events[: -(-len(self._events) // _SHARE)]
        del self._events[: len(gone)]
        self.begin += len(gone)
        self._change(-sum(map(len, gone)))
        return bool(gone)

    def _change(self, size: int) -> None:
        self.bytes += size
        self._on_change(size)

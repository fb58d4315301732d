"""A step that can be left while the device computes, for something else to be done, and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Generator

from gptoss_dist.engine.request import Event

Work = Generator[Callable[[], bool], None, list[Event]]
"""Computes a step, and returns its events. Where it would wait for the device it yields what tells whether it need not
any more; whoever goes on with it before waits there.
"""


def at_once(work: Work) -> list[Event]:
    """The events, waiting for the device wherever it is waited for."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return _events_of(end)


class Running:
    """Work that was begun, or is to begin."""

    def __init__(self, work: Work) -> None:
        """Nothing of it is done yet."""
        self._work = work
        self._is_ready: Callable[[], bool] | None = None

    @property
    def waits(self) -> bool:
        """Whether `go_on` would wait for the device."""
        return self._is_ready is not None and not self._is_ready()

    def go_on(self) -> list[Event] | None:
        """Up to the next wait: None; or to its end: the events."""
        try:
            self._is_ready = next(self._work)
        except StopIteration as end:
            return _events_of(end)
        return None

    def finish(self) -> list[Event]:
        """To its end; the events."""
        return at_once(self._work)


def _events_of(end: StopIteration) -> list[Event]:
    events: list[Event] = end.value
    return events

"""Drives the engine of all ranks: rank 0 sends requests and holds the clock, the others are in `Engine.follow`."""

from __future__ import annotations

import time
from collections.abc import Callable

from gptoss_dist.bench.arrivals import Arrivals
from gptoss_dist.bench.records import Listener
from gptoss_dist.engine.engine import Engine, nothing
from gptoss_dist.engine.request import Event, Request
from gptoss_dist.errors import DoesNotFitError

_NAP_SECONDS = 0.05
"""An idle driver looks this often whether it was told to stop."""


class Driver:
    """Rank 0's side: one load after the other, then `leave`."""

    def __init__(
        self,
        engine: Engine,
        should_stop: Callable[[], bool] = lambda: False,
        after_step: Callable[[], None] = nothing,
    ) -> None:
        """`should_stop` is looked at after every step; then the load ends where it is."""
        self._engine, self._should_stop, self._after_step = engine, should_stop, after_step
        self._active: dict[str, int] = {}
        self._left: dict[int, int] = {}
        """Tokens after which a request is to be cancelled, by its number."""
        self._begun = 0.0
        self._loads = 0

    def run(
        self,
        arrivals: Arrivals,
        make: Callable[[str, int], Request],
        listener: Listener,
        cancel_after: Callable[[int], int | None] = lambda _: None,
    ) -> bool:
        """Send what `arrivals` gives out, made by `make(id, number)`; whether it went to its end.

        `cancel_after(number)`: cancel that request after so many tokens. Raises DoesNotFitError, with nothing left
        under way, if a request can never be finished.
        """
        self._loads += 1
        self._begun = time.perf_counter()
        while arrivals.left or self._active:
            if self._should_stop():
                self._clear(listener)
                return False
            nap = 0.0 if self._active else arrivals.wait(self._now(), 0)
            if nap > 0:
                if nap == float("inf"):
                    break
                time.sleep(min(nap, _NAP_SECONDS))
                continue
            try:
                self._send(arrivals, make, listener, cancel_after)
            except DoesNotFitError:
                self._clear(listener)
                raise
            self._step(listener)
        return True

    def leave(self) -> None:
        """Let the other ranks go; nothing can be run afterwards."""
        self._engine.release()
        self._engine.step()

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    def _send(
        self,
        arrivals: Arrivals,
        make: Callable[[str, int], Request],
        listener: Listener,
        cancel_after: Callable[[int], int | None],
    ) -> None:
        for number, due in arrivals.take(self._now(), len(self._active)):
            request = make(f"bench-{self._loads}-{number}", number)
            self._engine.submit(request)
            self._active[request.id] = number
            listener.sent(number, due, len(request.prompt), request.sampling.max_tokens)
            if (count := cancel_after(number)) is not None:
                self._left[number] = count

    def _step(self, listener: Listener) -> None:
        events = self._engine.step()
        now = self._now()
        for event in events:
            self._take(event, now, listener)
        self._after_step()

    def _take(self, event: Event, now: float, listener: Listener) -> None:
        number = self._active.get(event.request_id)
        if number is None:
            return
        if event.tokens:
            listener.tokens(number, now, len(event.tokens))
        if event.finish is not None:
            del self._active[event.request_id]
            self._left.pop(number, None)
            listener.ended(number, event.finish)
        elif number in self._left:
            self._left[number] -= len(event.tokens)
            if self._left[number] <= 0:
                del self._left[number]
                self._engine.cancel(event.request_id)

    def _clear(self, listener: Listener) -> None:
        """Cancel all that is under way, and step until there is no work."""
        for request_id in self._active:
            self._engine.cancel(request_id)
        while self._active or self._engine.has_work:
            self._step(listener)

"""The events of the requests of one HTTP call, as they come from the engine; for the HTTP thread's event loop only."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from gptoss_dist.engine.request import Event, Finish
from gptoss_dist.server.api_error import ApiError

AT_ONCE = 64
"""Events that a reader who is behind gets before others have their turn: 25 ms of encoding with 20 logprobs a token."""


class RequestStream:
    """Iterate over it for events, until all requests are finished; close it in every case.

    A reader may be slow: events wait for it here, up to `max_behind` of them, and then its requests are cancelled.
    """

    def __init__(self, request_ids: Iterable[str], forget: Callable[[str], None], max_behind: int) -> None:
        """`forget` cancels a request that is not finished."""
        self._open = set(request_ids)
        self._forget = forget
        self._max_behind = max_behind
        self._events: deque[Event] = deque()
        self._given = 0
        """Events since the event loop last had a turn."""
        self._failure: ApiError | None = None
        self._changed = asyncio.Event()
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether more events may come."""
        return bool(self._open)

    def put(self, event: Event) -> None:
        """Take an event from the engine."""
        if event.request_id not in self._open:
            return
        if event.finish is not None:
            self._open.discard(event.request_id)
        if event.finish is Finish.cancelled:
            self.fail(ApiError(503, "the request was cancelled by the server.", code="cancelled"))
            return
        self._events.append(event)
        self._changed.set()
        if len(self._events) > self._max_behind:
            self._events.clear()
            self.fail(ApiError(503, f"the reader was {self._max_behind} events behind.", code="slow_reader"))

    def fail(self, error: ApiError) -> None:
        """End all that is open; the reader gets what is there already, and then `error`."""
        self._failure = self._failure or error
        self.close()
        if not self.accepted.done():
            self.accepted.set_exception(error)

    def cancel(self, request_id: str) -> None:
        """End one request; no more events of it will come."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._forget(request_id)
        self._events = deque(event for event in self._events if event.request_id != request_id)
        self._changed.set()

    def close(self) -> None:
        """End all requests that are not finished; what has come of them can still be read."""
        for request_id in sorted(self._open):
            self._forget(request_id)
        self._open.clear()
        self._changed.set()

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The events that are there, 1 to AT_ONCE at a time: who is behind catches up in few writes."""
        async for event in self:
            batch = [event, *(self._events.popleft() for _ in range(min(len(self._events), AT_ONCE - 1)))]
            self._given += len(batch) - 1
            yield batch

    def __aiter__(self) -> RequestStream:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises ApiError if the server ended the requests."""
        if self._given >= AT_ONCE:
            self._given = 0
            await asyncio.sleep(0)
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if not self._open:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
            self._given = 0
        self._given += 1
        return self._events.popleft()

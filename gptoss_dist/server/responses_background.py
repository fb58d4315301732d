"""A response that nobody has to wait for: it runs in a task of its own, and can be polled, followed and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from gptoss_dist.log import get_logger
from gptoss_dist.server.request_stream import AT_ONCE
from gptoss_dist.server.responses_output import StreamEvent
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.sse import encode

logger = get_logger(__name__)


async def replayed(log: Sequence[bytes], place: int) -> AsyncIterator[bytes]:
    """The events of a log from a place on, in few writes, between which others have their turn."""
    while place < len(log):
        events = log[place : place + AT_ONCE]
        yield b"".join(events)
        place += len(events)
        if place < len(log):
            await asyncio.sleep(0)


class Background:
    """Runs from its making on; for the event loop only. With `is_streamed` its events are kept, to be followed."""

    def __init__(
        self, run: Run, is_streamed: bool, on_growth: Callable[[int], None], on_end: Callable[[Background], None]
    ) -> None:
        """`on_growth` is told the bytes of each event that is kept; `on_end` is called when it has ended, or failed."""
        self.run = run
        self.log: list[bytes] | None = [] if is_streamed else None
        self._on_growth, self._on_end = on_growth, on_end
        self._changed = asyncio.Event()
        self._ended = False
        self._task = asyncio.create_task(self._drive())

    async def cancel(self) -> None:
        """End it; returns when it has ended."""
        self.run.cancel()
        await asyncio.wait((self._task,))

    def follow(self, after: int) -> AsyncIterator[bytes]:
        """The events after number `after`, those to come too; leaving does not end the response."""
        assert self.log is not None, "its events are not kept"
        return self._follow(self.log, after + 1)

    async def _follow(self, log: Sequence[bytes], place: int) -> AsyncIterator[bytes]:
        while True:
            async for events in replayed(log, place):
                yield events
            place = max(place, len(log))
            if self._ended:
                return
            await self._changed.wait()

    async def _drive(self) -> None:
        try:
            async for event in self.run.events():
                self._keep(event)
        except Exception:  # a defect: the server goes on, and whoever asks for the response is told
            name = self.run.response["id"]
            logger.exception("response %s: unexpected failure", name)
            for event in self.run.break_off(f"an unexpected failure; the server's log has it under {name}."):
                self._keep(event)
        finally:
            self.run.close()
            self._ended = True
            self._wake()
            self._on_end(self)

    def _keep(self, event: StreamEvent) -> None:
        if self.log is None:
            return
        encoded = encode(event, event["type"])
        self.log.append(encoded)
        self._on_growth(len(encoded))
        self._wake()

    def _wake(self) -> None:
        """Let all followers look."""
        self._changed.set()
        self._changed = asyncio.Event()

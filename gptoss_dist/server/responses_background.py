"""A response that nobody has to wait for: it runs in a task of its own, and can be polled, followed and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from gptoss_dist.log import get_logger
from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.event_log import EventLog
from gptoss_dist.server.request_stream import AT_ONCE
from gptoss_dist.server.responses_output import StreamEvent
from gptoss_dist.server.responses_run import Run
from gptoss_dist.server.sse import encode

logger = get_logger(__name__)


async def replayed(log: EventLog, number: int) -> AsyncIterator[bytes]:
    """The events of a log from a number on, in few writes, between which others have their turn.

    Raises ApiError for events that the log has let go.
    """
    while number < log.end:
        check_kept(log, number)
        events = log.take(number, AT_ONCE)
        yield b"".join(events)
        number += len(events)
        if number < log.end:
            await asyncio.sleep(0)


def check_kept(log: EventLog, number: int) -> None:
    """Raise ApiError (400) if a log no longer has its events from this number on."""
    if number < log.begin:
        message = (
            f"Events {number} to {log.begin - 1} of this stream are gone: there was no room for them in job.store_mb. "
            "Without stream=true the response is told as it is."
        )
        raise ApiError(400, message, param="starting_after", code="events_gone")


class Background:
    """Runs from its making on; for the event loop only. With a `log` its events are kept, to be followed."""

    def __init__(self, run: Run, log: EventLog | None, on_end: Callable[[Background], None]) -> None:
        """`on_end` is called when it has ended, or failed."""
        self.run = run
        self.log = log
        self._on_end = on_end
        self._changed = asyncio.Event()
        self._ended = False
        self._task = asyncio.create_task(self._drive())

    async def cancel(self) -> None:
        """End it; returns when it has ended."""
        self.run.cancel()
        await asyncio.wait((self._task,))

    def follow(self, number: int) -> AsyncIterator[bytes]:
        """The events from a number on, those to come too; leaving does not end the response."""
        assert self.log is not None, "its events are not kept"
        return self._follow(self.log, number)

    async def _follow(self, log: EventLog, number: int) -> AsyncIterator[bytes]:
        while True:
            async for events in replayed(log, number):
                yield events
            number = max(number, log.end)
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
        if self.log is not None:
            self.log.append(encode(event, event["type"]))
            self._wake()

    def _wake(self) -> None:
        """Let all followers look."""
        self._changed.set()
        self._changed = asyncio.Event()

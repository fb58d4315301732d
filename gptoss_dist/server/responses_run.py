"""One response under way: the engine's events in, the events of the Responses API out, in OpenAI's order.

response.created ─► response.queued (background) ─► response.in_progress ─► items ─► response.completed
                                                     max_output_tokens, or a constraint ─► response.incomplete
                                                     the engine, or the server, failed  ─► response.failed
                                                     it was cancelled                   ─► error
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from gptoss_dist.engine.request import Request
from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.request_stream import RequestStream
from gptoss_dist.server.responses_object import usage_of
from gptoss_dist.server.responses_output import OutputWriter, StreamEvent
from gptoss_dist.server.responses_reader import TurnReader

_LOST = "the server let go of the request before it was finished."
_CANCELLED = "the response was cancelled."


class Run:
    """Iterate over `events` once; `response` is what has come of it so far."""

    def __init__(
        self,
        response: dict[str, Any],
        request: Request,
        reader: TurnReader,
        writer: OutputWriter,
        stream: RequestStream,
    ) -> None:
        """`response` as it begins; `stream` is that of `request` alone."""
        self.response = response
        self.failure: ApiError | None = None
        """Why it failed."""
        self.on_end: Callable[[], None] | None = None
        """Called once it has ended, before the last event is given."""
        self._prompt_tokens = len(request.prompt)
        self._reader, self._writer, self._stream = reader, writer, stream
        self._next = 0
        self._cached = 0
        self._cancelled = False

    def cancel(self) -> None:
        """End it as soon as what has come is read; nothing if it has ended."""
        self._cancelled = True
        self._stream.close()

    def close(self) -> None:
        """Nobody wants it any more."""
        self._stream.close()

    async def events(self) -> AsyncIterator[StreamEvent]:
        """All events, numbered from 0."""
        yield self._lifecycle("response.created")
        yield self._lifecycle("response.queued" if self._is_queued else "response.in_progress")
        try:
            async for event in self._stream:
                self._cached = max(self._cached, event.cached)
                if self._is_queued:
                    self.response["status"] = "in_progress"
                    yield self._lifecycle("response.in_progress")
                for step in self._reader.take(event):
                    for one in self._writer.take(step):
                        yield self._numbered(one)
                if self._reader.finish_reason is not None:
                    break
        except ApiError as error:
            self.failure = error
        finally:
            self._stream.close()
        for one in self._writer.close():
            yield self._numbered(one)
        last = self._last()
        if self.on_end is not None:
            self.on_end()
        yield self._numbered(last)

    def break_off(self, why: str) -> list[StreamEvent]:
        """It cannot go on: the events that end it."""
        self.failure = ApiError(500, why, code="server_error")
        closing = [self._numbered(one) for one in self._writer.close()]
        return [*closing, self._numbered(self._last())]

    async def finish(self) -> dict[str, Any]:
        """The response, whole. Raises ApiError if it failed."""
        async for _ in self.events():
            pass
        if self.failure is not None:
            raise self.failure
        return self.response

    @property
    def _is_queued(self) -> bool:
        return bool(self.response["status"] == "queued")

    def _numbered(self, event: StreamEvent) -> StreamEvent:
        number, self._next = self._next, self._next + 1
        return {"type": event["type"], "sequence_number": number, **event}

    def _lifecycle(self, kind: str) -> StreamEvent:
        return self._numbered({"type": kind, "response": dict(self.response)})

    def _last(self) -> StreamEvent:
        """Settle how it ended; the event that says so."""
        finish = self._reader.finish_reason if self.failure is None else None
        usage = usage_of(self._prompt_tokens, self._reader, self._cached)
        changes: dict[str, Any] = {"output": self._writer.items, "usage": usage}
        if finish == "stop":
            changes |= {"status": "completed", "completed_at": int(time.time())}
        elif finish == "length":
            changes |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        elif self._cancelled and self.failure is None:
            changes["status"] = "cancelled"
        else:
            self.failure = self.failure or ApiError(500, _LOST, code="server_error")
            changes |= {"status": "failed", "error": {"code": "server_error", "message": self.failure.message}}
        self.response |= changes
        if changes["status"] == "cancelled":
            return {"type": "error", "code": "response_cancelled", "message": _CANCELLED, "param": None}
        return {"type": f"response.{changes['status']}", "response": dict(self.response)}
